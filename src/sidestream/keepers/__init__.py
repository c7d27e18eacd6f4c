"""What keeps Redis true to the rows and the rows tended: bounded, idempotent steps, done by one worker for all.

Nothing rests on an election: two keepers of the same kind doing the same step at once do no harm.
"""
