//! What is done to a sample before a network sees it: scaling numbers, tokens of a text. The same code trains and serves.
