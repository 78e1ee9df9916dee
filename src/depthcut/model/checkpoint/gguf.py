"""A GGUF file, unpacked once into an ordinary safetensors folder."""

import io
import logging
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from depthcut.model.checkpoint import files
from depthcut.model.checkpoint.files import ModelFolder
from depthcut.model.checkpoint.hash_cache import HashCache
from depthcut.runtime import store
from depthcut.runtime.errors import UserError

FORMAT = 1
log = logging.getLogger("depthcut")


def open_gguf(path: Path, cache: Path, hashes: HashCache) -> ModelFolder:
    """Open a GGUF file, unpacked to bfloat16 and cached in ``cache`` by the file's content.

    Raises:
        UserError: if transformers cannot read it.
    """
    folder = cache / "gguf" / store.content_digest([FORMAT, hashes(path)])
    return ModelFolder(files.cached_model_folder(folder, lambda new: unpack_gguf(path, new), hashes), hashes)


def unpack_gguf(path: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file to ``folder``, as bfloat16 safetensors.

    Raises:
        UserError: if transformers cannot read it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("unpacking %s, once", path.name)
    try:
        with suppress_output():
            tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                dtype=torch.bfloat16,
                quantization_config=GgufConfig(dequantize=True),
            )
    except Exception as error:  # the reader raises errors of many types
        why = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged, or transformers cannot unpack its model ({why})") from None
    for role in ("bos", "eos", "pad"):  # some versions of transformers mix them up; the file's IDs are right
        if isinstance(number := getattr(model.config, f"{role}_token_id", None), int):
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(number))
    with suppress_output():
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


@contextmanager
def suppress_output() -> Generator[None]:
    """Suppress the progress bars and messages of the unpacking."""
    from depthcut.model.checkpoint.loading import quiet_transformers

    with quiet_transformers(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        yield
