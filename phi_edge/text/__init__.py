"""Text: a conversation -> token ids (`prompt`), and token ids -> text (`detokenizer`)."""
