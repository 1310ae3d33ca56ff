"""The embedded world: a chat model of two million parameters, the skills that it knows, and how it
was made.

``weights/`` is the model, as any folder of transformers; ``weights/MODEL.md`` says how it scores.
"""
