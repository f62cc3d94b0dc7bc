"""Lets a checkpoint continue a prompt with nothing but stock transformers: the result is a plain model."""

from pathlib import Path


def continue_prompt(folder: Path, prompt: str, *, new_tokens: int) -> str:
    """The checkpoint's greedy continuation of `prompt`, without the prompt."""
    import torch  # takes seconds
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    given = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**given, max_new_tokens=new_tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True))
