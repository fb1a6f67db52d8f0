"""What a user's code looks like to type checkers. Nothing of it runs: ``make typing``."""
