"""Making a prompt and a LoRA say the same thing: `distil` turns a prompt into a LoRA."""
