"""An export in code that was written for Hugging Face's libraries: the engine computes, they ask.

Nothing is imported here: `question_answering` needs no torch, the others need transformers.
"""
