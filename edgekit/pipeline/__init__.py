"""Running a recipe: stages with content-addressed outputs, resumable at any moment."""
