"""Labels of language models beside what else could store them: peers, their distortion, and students of labels."""
