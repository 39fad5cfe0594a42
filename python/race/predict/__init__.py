"""From members to moments: what a run or an artifact predicts of frames, with its uncertainty."""
