"""What holds of every page of a report, whatever it shows."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

MAX_BYTES = 2_000_000
_EMPTY = {"meta", "link", "path", "rect", "use", "br", "line"}


class Page(HTMLParser):
    """The elements of a page: `ids`, `links`, `text`, `drawings` and `sections` by title."""

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.ids, self.named, self.links, self.sources = Counter(), set(), [], []
        self.elements, self.text, self.sections = Counter(), [], []
        self._open = []
        self.feed(html)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.elements[tag] += 1
        if "id" in found:
            self.ids[found["id"]] += 1
        for name in ("aria-labelledby", "aria-describedby"):
            self.named |= set((found.get(name) or "").split())
        self.named |= set(re.findall(r"url\(#([^)]+)\)", found.get("clip-path") or ""))
        self.sources += [found[name] for name in ("src", "data", "action") if name in found]
        if "href" in found:
            self.links.append(found["href"])
        if tag not in _EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in _EMPTY:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        self.text.append(data)
        if self._open[-1:] == ["h2"]:
            self.sections.append(data)

    @property
    def words(self):
        """All text, blanks as one."""
        return " ".join(" ".join(self.text).split())


def checked(html):
    """Return the page, once it asks nobody for anything and everybody can read it."""
    page = Page(html)
    assert len(html.encode()) < MAX_BYTES
    assert page.elements["script"] == 0
    assert page.sources == []
    outside = [link for link in page.links if re.match(r"(?!data:,$)([a-z]+:|//)", link)]
    assert outside == []
    assert not re.search(r"@import|url\((?!#)", html)
    assert [name for name, times in page.ids.items() if times > 1] == []
    inner = {link[1:] for link in page.links if link.startswith("#")}
    assert (page.named | inner) - set(page.ids) == set()
    drawings = re.findall(r"<svg[^>]*>", html)
    assert all('role="img"' in each or 'aria-hidden="true"' in each for each in drawings)
    assert page.elements["figure"] == html.count("The same as a table")
    return page
