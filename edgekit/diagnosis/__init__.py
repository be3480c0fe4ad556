"""Why a converted model is worse than its teacher: layer by layer, and what to do about it."""
