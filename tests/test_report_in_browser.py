import shutil

import pytest

from luna_cls.reports.page import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install luna_cls[dev]")

pytestmark = pytest.mark.slow

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
KINDS = ("run", "findings", "scan", "evaluation", "comparison", "losses")
WITH_SLIDERS = ("run", "findings", "scan", "evaluation")


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: one on the path, or else playwright's own."""
    names = ("chromium", "google-chrome", "chromium-browser")
    path = next((found for name in names if (found := shutil.which(name))), None)
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            reason = str(error).strip().splitlines()[0]
            pytest.skip(f"needs Chromium: none of {', '.join(names)} runs, nor playwright's own: {reason}")
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def reports(report_folders, small_tree, tmp_path_factory):
    """The path of a page of each kind, with pictures."""
    root = tmp_path_factory.mktemp("reports")
    copies = {kind: shutil.copytree(folder, root / kind) for kind, folder in report_folders.items()}
    return {kind: write_report(folder, scans=[small_tree]) for kind, folder in copies.items()}


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture
def show(browser, reports):
    """A function that opens a report; what it asks for and complains of is noted on the page it returns."""
    contexts = []

    def opened(kind, viewport, scheme="light", **options):
        context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.complaints, page.asked = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(reports[kind].as_uri())
        if kind in WITH_SLIDERS and options.get("java_script_enabled", True):
            page.wait_for_selector("canvas")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_is_quiet_fits_and_is_accessible(show, reports, kind, viewport, scheme):
    """No word on the console, no request but for the file, no sideways scroll, nothing serious by axe."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    page = show(kind, viewport, scheme)

    for one in page.query_selector_all("summary"):
        one.click()
    found = axe.Axe().run(page).response["violations"]

    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith("data:")] == [reports[kind].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []


@pytest.mark.parametrize("kind", WITH_SLIDERS)
def test_the_slider_goes_through_the_cube(show, kind):
    """Two keys to the right: 2 mm; then a click at its left end: the other pictures of a cube of 41 mm."""
    page = show(kind, PHONE)
    card = page.locator(".card").first
    slider, label = card.get_by_role("slider"), card.locator("output")
    pixels = "canvas => canvas.toDataURL()"
    middle = card.locator("canvas").evaluate(pixels)

    assert label.inner_text() == "0 mm"
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    right = card.locator("canvas").evaluate(pixels)
    assert label.inner_text() == "+2 mm"
    assert slider.get_attribute("aria-valuetext") == "2 mm towards head, back and left"
    slider.click(position={"x": 1, "y": 10})
    left = card.locator("canvas").evaluate(pixels)
    assert label.inner_text() == "−20 mm"
    assert len({middle, right, left}) == 3
    page.keyboard.press("Home")
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    assert card.locator("canvas").evaluate(pixels) == middle


def test_a_switch_lays_colours_over_the_planes(show):
    """Off at first, with no legend; by key it colours the planes, and the legend tells what colours mean."""
    page = show("scan", PHONE)
    card = page.locator(".card").first
    switch, legend, canvas = card.get_by_role("checkbox"), card.locator(".legend"), card.locator("canvas")
    in_colour = """canvas => {
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        const found = [0, 0];  // orange, blue
        for (let i = 0; i < data.length; i += 4) {
            found[0] += data[i] > data[i + 2] + 50;
            found[1] += data[i + 2] > data[i] + 50;
        }
        return found;
    }"""

    assert (legend.is_visible(), canvas.evaluate(in_colour)) == (False, [0, 0])
    switch.focus()
    page.keyboard.press("Space")
    assert " ".join(legend.inner_text().split()) == "orange raised the logit blue lowered it"
    assert canvas.evaluate(in_colour) == [0, 0]  # the voxels lie beside the middle planes
    card.get_by_role("slider").focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert canvas.evaluate(in_colour) == [1, 0]  # 3 mm to the left: the sagittal plane meets it
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert canvas.evaluate(in_colour) == [1, 0]  # 5 mm to the head: the axial plane
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    assert canvas.evaluate(in_colour) == [0, 1]  # 5 mm to the feet: the other voxel
    assert page.locator(".card").nth(1).get_by_role("checkbox").count() == 0


def test_without_a_script_and_on_paper_colours_have_a_picture_of_their_own(show):
    """A second still with its legend stands below the first; the switch is not there."""
    page = show("scan", DESKTOP, java_script_enabled=False)
    printed = show("scan", DESKTOP)
    printed.emulate_media(media="print")

    for one in (page, printed):
        card = one.locator(".card").first
        assert card.locator(".explained img").is_visible()
        assert card.locator(".legend").is_visible()
        assert not card.locator(".switch").is_visible()


def test_the_first_picture_of_the_slider_is_the_still(show):
    """Before it is moved, the canvas shows the very pixels that are there without a script."""
    page = show("run", DESKTOP)
    still = show("run", DESKTOP, java_script_enabled=False).locator(".cube img").first.get_attribute("src")

    same = """([canvas, still]) => new Promise(done => {
        const image = new Image();
        image.onload = () => {
            const other = document.createElement("canvas");
            [other.width, other.height] = [image.width, image.height];
            other.getContext("2d").drawImage(image, 0, 0);
            done(other.toDataURL() === canvas.toDataURL());
        };
        image.src = still;
    })"""

    assert page.evaluate(same, [page.locator("canvas").first.element_handle(), still])


def test_without_a_script_there_is_a_still_and_no_slider(show):
    """With JavaScript off, pictures are seen, and no slider that does nothing."""
    page = show("run", DESKTOP, java_script_enabled=False)

    assert page.locator(".cube img").first.is_visible()
    assert not page.locator(".cube input").first.is_visible()


def test_it_prints_light_without_what_cannot_be_used_on_paper(show):
    """Printed from a dark screen: black on white, no slider, no contents."""
    page = show("evaluation", DESKTOP, "dark")
    page.emulate_media(media="print")

    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 32, 42)"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("canvas").first.is_visible()
    assert not page.locator(".slide").first.is_visible()
    assert not page.locator("nav").is_visible()


def test_what_is_folded_up_on_a_screen_is_open_on_paper(show):
    """Settings are printed; that a slider moves the planes is not."""
    page = show("run", DESKTOP)
    settings, sentence = page.locator(".listing pre").first, page.locator(".how").first

    assert not settings.is_visible()
    assert sentence.is_visible()
    page.emulate_media(media="print")
    assert settings.is_visible()
    assert not sentence.is_visible()


def test_a_table_that_is_too_wide_shows_that_it_scrolls(show):
    """On a phone a wide table has a shadow at the edge beyond which it goes on, which a cover hides."""
    page = show("run", PHONE)
    style = "table => [table.scrollWidth > table.clientWidth, getComputedStyle(table).backgroundAttachment]"
    seen = [table.evaluate(style) for table in page.locator(".wide").all()]

    assert any(scrolls for scrolls, _ in seen)
    assert {attachment for _, attachment in seen} == {"local, local, scroll, scroll"}
