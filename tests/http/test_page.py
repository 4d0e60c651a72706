"""The explorer page, used as people use it: in a browser, by clicks and by keys alone."""

import json
import re
from urllib.parse import urlsplit

import httpx
import pytest

from raysys.data.schema import RatingLevels
from raysys.http.app import create_app
from raysys.http.keys import KeyRing, hash_of, with_key
from raysys.http.service import ServiceOptions
from raysys.search.search import Search
from tests.http.test_app import InProcess
from tests.support.browsers import chromium, serving
from tests.support.runs import item_id, model_run, title, user_id, vectors_run

GOOD, SLOW = "rs_good", "rs_slow"
RANKINGS = ("consume", "rating", "like", "discover")
FILES = {"/": "text/html", "/explorer.js": "text/javascript", "/explorer.css": "text/css"}


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    return Search.open(model_run(tmp_path_factory.mktemp("run"))[0])


@pytest.fixture(scope="module")
def url(search):
    with serving(create_app(lambda: search)) as base:
        yield base


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture
def visit(browser):
    """Open pages; whatever they did, nothing left the host, broke the policy or failed."""
    contexts, wrong = [], []

    def requested(request):
        if urlsplit(request.url).scheme != "data" and urlsplit(request.url).hostname != "127.0.0.1":
            wrong.append(f"asked {request.url}")

    def told(message):
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            wrong.append(message.text)

    def opened(url, *, width=1280, scheme="light"):
        size = {"width": width, "height": 800}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        page.on("request", requested)
        page.on("console", told)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def names(page, ranking):
    return page.locator(f"[aria-labelledby=list-{ranking}] .hit .title").all_inner_texts()


def add_from(page, ranking, place=0):
    page.locator(f"[aria-labelledby=list-{ranking}] .hit").nth(place).get_by_label("Add").click()


def drawn(page, ranking="consume"):
    page.wait_for_selector(f"[aria-labelledby=list-{ranking}] .hit")
    page.wait_for_selector("#columns:not([aria-busy])")


def asked(url, **query):
    """Return the titles that the service answers with."""
    items = httpx.post(f"{url}/v1/recommend", json=query).json()["items"]
    return [item["title"] or item["item_id"] for item in items]


# -- without a browser ---------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
def test_files_are_open_and_kept_by_browsers(search, tmp_path, path):
    app = create_app(lambda: search, ServiceOptions(keys=KeyRing(str(key_file(tmp_path)))))
    with httpx.Client(transport=InProcess(app), base_url="http://service") as http:
        answer = http.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(FILES[path])
        assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = http.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert http.head(path).status_code == 200
        assert http.post(path).status_code == 405
        assert path not in http.get("/openapi.json").json()["paths"]


def test_what_is_served_speaks_of_no_other_host():
    with httpx.Client(transport=InProcess(create_app(None)), base_url="http://service") as http:
        for path in FILES:
            text = http.get(path).text
            assert set(re.findall(r"https?://[^\s'\"]+", text)) <= {"http://www.w3.org/2000/svg"}
            assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


# -- by clicks -----------------------------------------------------------------------------


def test_a_profile_made_by_clicks(visit, url):
    page = visit(url)
    drawn(page, "popular")
    assert "no time of its items" in page.inner_text("[aria-labelledby=list-recent]")
    first = names(page, "popular")[0]
    add_from(page, "popular")
    drawn(page)
    assert page.locator("#profile li").count() == 1
    [popular] = httpx.get(f"{url}/v1/popular?k=1").json()["items"]
    assert first == popular["title"]
    page.get_by_label(f"Level of {first}").select_option("2")
    drawn(page)
    profile = [{"item_id": popular["item_id"], "rating": 2}]
    for ranking in RANKINGS:
        assert names(page, ranking) == asked(url, profile=profile, ranking=ranking)
    assert "20 items by consume, rating, like, discover" in page.inner_text("#told")

    row = page.locator("[aria-labelledby=list-like] .hit").first
    row.locator(".title").click()
    more = row.locator(".more").inner_text()
    query = {"profile": profile, "ranking": "like", "k": 1, "levels": True, "explain": True}
    [hit] = httpx.post(f"{url}/v1/recommend", json=query).json()["items"]
    assert f"{first}\n{hit['because'][0]['score']:.2f}" in more
    assert row.locator(".levels i").count() == len(hit["levels"]) == 5
    assert "zip" in more
    figures = row.locator(".figures").inner_text().replace("\n", " ")
    assert figures.endswith(f"rating {hit['expected_rating']:.2f}")

    shared = page.url
    page.get_by_role("button", name="Clear").click()
    drawn(page, "popular")
    page.go_back()
    drawn(page)
    assert page.url == shared
    other = visit(shared)
    drawn(other)
    assert names(other, "discover") == asked(url, profile=profile, ranking="discover")
    assert first in other.locator("#profile").inner_text()


def test_filters_users_and_what_is_not_there(visit, url):
    page = visit(url)
    drawn(page, "popular")
    page.get_by_label("Stored user").fill(user_id(7))
    page.get_by_role("button", name="Use", exact=True).click()
    drawn(page)
    assert names(page, "consume") == asked(url, user_id=user_id(7))
    page.get_by_text("Filters").click()
    page.get_by_label("Attribute").fill("categories")
    assert page.locator("#values option").count() == 3  # Books, odd0, odd1
    page.get_by_label("Value").fill("odd1")
    page.get_by_label("Value").press("Enter")
    page.wait_for_selector("text=categories: odd1")
    drawn(page)
    expected = asked(url, user_id=user_id(7), allow={"categories": ["odd1"]})
    assert names(page, "consume") == expected
    page.get_by_label("Attribute").fill("zip")
    page.get_by_label("Value").fill("..10")
    page.get_by_label("Items", exact=True).select_option("deny")
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_selector("text=not zip: ..10")
    drawn(page)
    conditions = {"allow": {"categories": ["odd1"]}, "deny": {"zip": {"max": "10"}}}
    assert names(page, "like") == asked(url, user_id=user_id(7), ranking="like", **conditions)

    page.get_by_label("Stored user").fill("nobody")
    page.get_by_role("button", name="Use", exact=True).click()
    page.wait_for_selector("#failure:has-text(\"user_id='nobody'\")")
    assert page.locator(".hit").count() == 0
    assert page.get_attribute("#user", "aria-invalid") == "true"
    page.get_by_label("Remove the filter categories: odd1").click()
    page.get_by_label("Stored user").fill("")
    page.get_by_label("Stored user").press("Enter")
    drawn(page, "popular")
    page.get_by_label("Attribute").fill("nosuch")
    page.get_by_label("Value").fill("1")
    page.get_by_label("Value").press("Enter")
    page.wait_for_selector("[aria-labelledby=list-popular]:has-text('nosuch')")


def test_a_build_of_plain_vectors(visit, tmp_path):
    search = Search.open(vectors_run(tmp_path)[0])
    with serving(create_app(lambda: search)) as url:
        page = visit(url)
        page.wait_for_selector("[aria-labelledby=list-popular]")
        assert not page.get_by_label("Stored user").is_visible()
        page.get_by_label("Add items by title").fill(item_id(1))  # an item without a title
        page.get_by_role("option", name=item_id(1)).click()
        drawn(page, "similar")
        expected = asked(url, profile=[{"item_id": item_id(1)}])
        assert names(page, "similar") == expected


def test_levels_stand_in_the_order_of_the_build(visit, tmp_path):
    """Objects of JavaScript would put those that are whole numbers first."""
    names = ("0.5", "1", "1.5", "2")
    values, liked = tuple(map(float, names)), (False, False, True, True)
    levels = RatingLevels(names=names, values=values, liked=liked, scale=(0.5, 2))
    search = Search.open(model_run(tmp_path, levels=levels)[0])
    with serving(create_app(lambda: search)) as url:
        page = visit(f'{url}#items=[["{item_id(3)}","0.5"]]')
        drawn(page)
        page.locator(".hit .title").first.click()
        assert page.locator(".more .levels span").all_inner_texts() == [*names]
        assert page.locator(".more .levels i.liked").count() == 2
        assert page.get_by_label("Level of").input_value() == "0.5"


def test_atoms_once_the_service_has_them(visit, url):
    """The service's answers with what it will say of atoms; names are texts, whatever they hold."""
    bold = "<b onclick=x>Dark</b>"
    bodies = []

    def batch(route):
        body = route.request.post_data_json
        bodies.append([query.pop("atoms", None) for query in body["queries"]])
        answer = httpx.post(f"{url}/v1/recommend/batch", json=body).json()
        for entry in answer["answers"]:
            for hit in entry["answer"]["items"]:
                hit["atoms"] = [{"atom": 17, "name": bold, "share": 0.4}]
                hit["atoms"] += [{"atom": 4, "name": None, "share": -0.2}]
        route.fulfill(json=answer)

    page = visit("about:blank")
    page.route("**/v1/recommend/batch", batch)
    items = [{"item_id": item_id(3), "title": title(3), "score": 1.0}]
    listed = [
        {"atom": atom, "name": name, "n_items": 9, "items": items}
        for atom, name in ((204, "Quiet"), (4, None))
    ]
    page.route("**/v1/atoms?*", lambda route: route.fulfill(json={"build_id": "", "atoms": listed}))
    page.goto(url)
    drawn(page, "popular")
    assert not page.locator("#steering").is_visible()
    add_from(page, "popular")
    drawn(page)
    page.locator("[aria-labelledby=list-consume] .title").first.click()
    assert f"Atom 4, as in {title(3)}\n−20 %\nSteer" in page.inner_text(".more")
    page.get_by_role("button", name=f"Steer {bold}").first.click()
    slider = page.get_by_label(bold, exact=True)
    slider.press("ArrowLeft")
    drawn(page)
    page.get_by_label("Add an atom").select_option("Quiet")
    drawn(page)
    assert page.locator("#sliders output").all_inner_texts() == ["+0.5", "+1"]
    assert bodies[-1] == [{"17": 0.5, "204": 1}] * 4
    page.get_by_label(f"Leave {bold} alone").click()
    drawn(page)
    assert bodies[-1] == [{"204": 1}] * 4


# -- by keys -------------------------------------------------------------------------------


def test_the_keyboard_alone(visit, url):
    page = visit(url)
    drawn(page, "popular")
    keys = page.keyboard
    keys.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the lists"
    for _ in range(10):
        keys.press("Tab")
        if page.evaluate("document.activeElement.id") == "title":
            break
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    keys.type("tit 7")
    page.wait_for_selector("[role=option]")
    assert page.get_attribute("#title", "aria-expanded") == "true"
    keys.press("ArrowDown")
    chosen = page.get_attribute("#title", "aria-activedescendant")
    assert page.inner_text(f"#{chosen}").startswith("Title 7")
    assert page.get_attribute(f"#{chosen}", "aria-selected") == "true"
    keys.press("Escape")
    assert page.get_attribute("#title", "aria-expanded") == "false"
    keys.type("zzz")
    page.wait_for_selector("text=No title holds")
    keys.press("Control+a")
    keys.type("title 7")
    page.wait_for_selector("[role=option]")
    keys.press("Enter")
    drawn(page)
    assert "Title 7" in page.inner_text("#profile")
    assert page.evaluate("document.activeElement.id") == "title"

    for _ in range(60):
        keys.press("Tab")
        label = page.evaluate("document.activeElement.getAttribute('aria-label') ?? ''")
        if label.startswith("Add "):
            break
    keys.press("Enter")
    page.wait_for_selector("#profile li:nth-child(2)")
    drawn(page)
    now = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert now.startswith("Add ")  # the row that took its place
    assert now != label
    keys.press("Shift+Tab")
    keys.press("Space")
    assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"


# -- keys, prefixes, looks -----------------------------------------------------------------


def key_file(folder):
    path = folder / "keys.yaml"
    entry = {"sha256": hash_of(GOOD), "scopes": ["read"]}
    slow = {"sha256": hash_of(SLOW), "scopes": ["read"], "per_second": 1}
    content = with_key(None, str(path), "good", entry)
    path.write_bytes(with_key(content, str(path), "slow", slow))
    return path


def test_a_service_with_keys_is_asked_with_one(visit, search, tmp_path):
    options = ServiceOptions(keys=KeyRing(str(key_file(tmp_path))))
    with serving(create_app(lambda: search, options)) as url:
        items = json.dumps([[item_id(5)]])
        page = visit(f"{url}#items={items}")
        field = page.get_by_label("Key", exact=True)
        field.fill("rs_wrong")
        field.press("Enter")
        page.wait_for_selector("text=This key is not known")
        field.fill(GOOD)
        page.get_by_role("button", name="Use it").click()
        drawn(page)
        assert page.inner_text("#profile li span").startswith(title(5))
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        page.reload()
        drawn(page)
        page.get_by_role("button", name="Key", exact=True).click()
        page.get_by_role("button", name="Forget it").click()
        page.wait_for_selector("#key-dialog[open]")
        field.fill(SLOW)
        field.press("Enter")
        drawn(page)
        page.reload()
        page.wait_for_selector("#failure:has-text('Asks again in')")
        assert "'slow' has 1 requests a second" in page.inner_text("#failure")
        assert item_id(5) in page.inner_text("#profile")
        drawn(page)  # it did ask again


def test_below_a_prefix(visit, search):
    with serving(create_app(lambda: search), prefix="/rec") as url:
        page = visit(url)
        assert page.url == f"{url}/"
        drawn(page, "popular")
        add_from(page, "popular")
        drawn(page)
        assert httpx.get(url, follow_redirects=False).headers["location"] == "./rec/"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_axe_finds_nothing_serious(visit, url, width, scheme):
    base = pytest.importorskip("axe_playwright_python.base", reason="no axe: pip install -e .[dev]")
    page = visit(url, width=width, scheme=scheme)

    def check():
        page.evaluate(base.AXE_FILE_PATH.read_text())
        found = page.evaluate("async () => (await axe.run()).violations")
        assert [(each["id"], each["impact"]) for each in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width

    drawn(page, "popular")
    page.get_by_label("Add items by title").fill("title")
    page.wait_for_selector("[role=option]")
    check()
    page.keyboard.press("Enter")
    drawn(page)
    page.get_by_text("Filters").click()
    page.locator("[aria-labelledby=list-consume] .title").first.click()
    check()
    if width == 400:  # one list at a time
        assert not page.locator("#list-like").is_visible()
        page.get_by_text("like", exact=True).first.click()
        assert page.locator("#list-like").is_visible()
    page.goto(f"{url}/#user=nobody")
    page.wait_for_selector("#failure:visible")
    check()
