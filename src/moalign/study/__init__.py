"""The blind user study (Sec. 5.1, Tab. 6): a frozen plan, prepared clips, one page, votes that are never lost."""
