"""A page taken apart, for tests of what it says."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br", "wbr", "path"}
GLUE = "\u2060"  # where a word may be broken but is one


class Parsed(HTMLParser):
    """A page taken apart: its tags, ids, links, words; and whether what is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.not_closed = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "wbr":
            self.words.append(GLUE)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.not_closed.append(tag)

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).replace(f" {GLUE} ", "").split())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]
