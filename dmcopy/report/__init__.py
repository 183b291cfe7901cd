"""Shows what happens: for a person (`text`) or a program (`jsonlines`)."""
