"""spaCy's English words in a time that grows with the length of a text and not with the square of a word's.

spaCy takes the signs around a word away one by one, and each time searches all that is left: 8,000 equal signs in a
row take 19 seconds. `split` gives the same words; it looks at the two ends of a word alone, where the rules about
signs look, and is meant for texts in which some word is long.
"""

import functools
import re

WIDE = 64  # characters at either end of a word that the rules look at: more than any of them has, but a row of dots


def english_tokenizer():
    """Return spaCy's English tokenizer: the rules of the full pipeline, with nothing to download."""
    import spacy  # here, as it takes 60 MB and two seconds, which T5 and those who bring token ids need not pay
    return spacy.blank("en").tokenizer


def split(tokenizer, text):
    """Return the words of a text, the same as [word.text for word in tokenizer(text)].

    Args:
        tokenizer: see english_tokenizer.
    """
    rules = _Rules.of(tokenizer)
    words, spaced = [], []  # spaced[i]: word i has a blank behind it
    for match in re.finditer(r"\s+|\S+", text):
        span = match[0]
        if span[0].isspace():
            if span[0] == " " and words:  # one blank belongs to the word before it
                spaced[-1] = True
                span = span[1:]
            if span:
                words.append(span)
                spaced.append(False)
        else:
            found = rules.split_span(span)
            words += found
            spaced += [False] * len(found)
    return rules.join_special(words, spaced)


class _Rules:
    """The rules of one tokenizer, in the form that `split` needs.

    Attributes:
        special: {text: its words}, such as "don't": ["do", "n't"]. n_special: characters of the longest one.
        by_first: {word: [lists of words that begin with it, and that together may be a special text]}.
    """

    @staticmethod
    @functools.lru_cache(maxsize=4)
    def of(tokenizer):
        return _Rules(tokenizer)

    def __init__(self, tokenizer):
        from spacy.attrs import ORTH
        self.prefix, self.suffix = tokenizer.prefix_search, tokenizer.suffix_search
        self.infixes, self.url = tokenizer.infix_finditer, tokenizer.url_match
        rules = tokenizer.rules
        self.special = {}
        self.n_special = max(map(len, rules))
        self.by_first = {}
        for text in rules:  # while self.special is empty: special texts are looked for in words without regard to it
            if self.prefix(text) or self.suffix(text) or any(self.infixes(text)) or " " in text:
                words = self.split_span(text)
                self.by_first.setdefault(words[0], []).append(words)
        self.special = {text: [word[ORTH] for word in words] for text, words in rules.items()}

    def split_span(self, span):
        """Return the words of a text without blanks: first the special texts, then the signs at the two ends."""
        begin, end = 0, len(span)
        before, after = [], []
        while begin < end and not self._is_special(span, begin, end):
            n_prefix = self._prefix_length(span, begin, end)
            if n_prefix and self._is_special(span, begin + n_prefix, end):
                before.append(span[begin:begin + n_prefix])
                begin += n_prefix
                break
            n_suffix = self._suffix_length(span, begin + n_prefix, end)
            if n_suffix and self._is_special(span, begin, end - n_suffix):
                after.append(span[end - n_suffix:end])
                end -= n_suffix
                break
            if not n_prefix and not n_suffix:
                break
            if n_prefix:
                before.append(span[begin:begin + n_prefix])
                begin += n_prefix
            if n_suffix:
                after.append(span[end - n_suffix:end])
                end -= n_suffix
        return before + self._split_middle(span[begin:end]) + after[::-1]

    def join_special(self, words, spaced):
        """Return the words with the special texts found that several of them make, such as the signs of a smiley.

        The longest are found first. One that overlaps with a longer one is dropped, and all the same keeps its words
        from being looked at again, as in spaCy.
        """
        found = [(len(parts), i) for i, word in enumerate(words) for parts in self.by_first.get(word, ())
                 if words[i:i + len(parts)] == parts]
        if not found:
            return words
        found.sort(key=lambda length_and_start: (-length_and_start[0], length_and_start[1]))
        seen, chosen = set(), {}
        for n, start in found:
            if start not in seen and start + n - 1 not in seen:
                chosen[start] = n
            seen.update(range(start, start + n))
        joined, i = [], 0
        while i < len(words):
            n = chosen.get(i, 1)
            parts = words[i:i + n]
            if i in chosen and not any(spaced[i:i + n - 1]):
                parts = self.special.get("".join(parts), parts)
            joined += parts
            i += n
        return joined

    def _is_special(self, span, begin, end):
        return end - begin <= self.n_special and span[begin:end] in self.special

    def _prefix_length(self, span, begin, end):
        match = self.prefix(span[begin:min(end, begin + WIDE)])
        n = match.end() - match.start() if match else 0
        if n == WIDE:
            while begin + n < end and span[begin + n] == ".":
                n += 1
        return n

    def _suffix_length(self, span, begin, end):
        match = self.suffix(span[max(begin, end - WIDE):end])
        n = match.end() - match.start() if match else 0
        if n == WIDE:
            while end - n > begin and span[end - n - 1] == ".":
                n += 1
        return n

    def _split_middle(self, text):
        """Return the words of what is left when the signs around it are gone."""
        if not text:
            return []
        if text in self.special:
            return self.special[text]
        if self.url(text):
            return [text]
        words, start = [], 0
        for match in self.infixes(text):
            if match.start() == 0:
                continue
            words += [text[start:match.start()], match[0]]
            start = match.end()
        return [word for word in (*words, text[start:]) if word]
