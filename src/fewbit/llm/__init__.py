"""Language models: weights of few bits inside the unchanged `transformers` model."""
