"""Running a fitted classifier over files."""
