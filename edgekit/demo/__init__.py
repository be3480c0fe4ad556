"""The demo: a small teacher and real data that a package brings (`edgekit demo`)."""
