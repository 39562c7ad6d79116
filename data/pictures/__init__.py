"""A folder of a user's own pictures: how they are decoded, what is among them, and what is wrong with it."""
