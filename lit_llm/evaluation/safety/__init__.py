"""What a model may do harm with, one file for each check; each says what it shows and what it does not."""
