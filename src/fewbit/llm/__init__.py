"""Language models: weights of few bits inside the unchanged `transformers` model.

model, tokenizer = fewbit.llm.load("smollm-int4")        # then model.generate(...), as ever
"""

from typing import Any


def load(*args: Any, **options: Any) -> tuple[Any, Any]:
    """llm/loading's load; torch and transformers are imported here."""
    from fewbit.llm.loading import load as found

    return found(*args, **options)
