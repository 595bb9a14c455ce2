"""Questions with choices, asked after examples: their text, their score, their gain."""
