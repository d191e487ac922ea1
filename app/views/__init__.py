"""The pages of the dashboard, one `page()` a file."""
