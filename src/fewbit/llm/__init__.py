"""Language models: weights of few bits inside the unchanged `transformers` model.

model, tokenizer = fewbit.llm.load("smollm-int4")        # then model.generate(...), as ever
"""

from typing import Any

from fewbit.errors import extras


@extras()
def load(*args: Any, **options: Any) -> tuple[Any, Any]:
    """(model, tokenizer) of what `fewbit llm quantize` wrote: a transformers model over packed weights, and its tokenizer.

    Args:
        args, options: folder; threads, None for torch's own number; activations, "int8" or "float".

    Raises:
        FewbitError: the folder is no artifact, or torch, transformers or safetensors is not installed.
    """
    from fewbit.llm.loading import load as found

    return found(*args, **options)
