"""What each command of `setbacks` but the stages does."""
