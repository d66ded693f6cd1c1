"""The page in a browser: it opens without an error, and its slider, filters and boxes do what they say."""
import json
import shutil

import pytest
import report_case

pytestmark = pytest.mark.slow
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.fixture(scope="module", params=[1280, 390], ids=["wide", "phone"])
def page(request, tmp_path_factory):
    """The report of `report_case` in a window of that many pixels; what it logs or requests is an error."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("page")
    rows = [json.dumps({"step": step, "loss": 1 / step}) for step in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    with playwright.sync_playwright() as api:
        window = api.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        view = window.new_page(viewport=dict(width=request.param, height=800))
        log = []
        view.on("console", lambda message: log.append(message.text))
        view.on("pageerror", lambda error: log.append(str(error)))
        view.on("request", lambda sent: log.append(sent.url) if not sent.url.startswith(("file:", "data:")) else None)
        view.goto(report_case.write(folder / "report.html", folder).as_uri())
        yield view
        assert log == []
        window.close()


def names(page):
    return page.locator(".card .name").all_inner_texts()


def slide(page, score):
    page.evaluate("score => { threshold.value = score; threshold.dispatchEvent(new Event('input')); }", score)
    page.wait_for_function("score => document.getElementById('score').value == score", arg=f"{score / 1000:.3f}")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_it_fits_the_window_and_draws_every_chart(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#numbers div").count() == 12
    assert [page.locator(f"#{part} svg").count() for part in ("curves", "calibration", "training")] == [2, 1, 1]
    assert page.locator("#classes tbody tr").count() == 2 and page.locator("#costs tbody tr").count() == 6


def test_the_slider_redraws_boxes_and_counts(page):
    slide(page, 600)
    assert "3 right, 1 false, 2 missed" in page.locator("#selected").inner_text()
    assert names(page)[0] == "1<.jpg" and page.locator(".picture img").count() == 5
    boxes = page.locator(".picture rect").count()
    slide(page, 0)
    assert "3 right, 2 false, 2 missed" in page.locator("#selected").inner_text()
    assert names(page)[0] == "3<.jpg" and page.locator(".picture rect").count() == boxes + 1
    slide(page, 1000)
    assert "0 right, 0 false, 5 missed" in page.locator("#selected").inner_text()


def test_filters_keep_the_images_that_have_the_error_or_the_class(page):
    slide(page, 0)
    page.select_option("#kind", label="background")
    assert sorted(names(page)) == ["2<.jpg", "3<.jpg"]
    page.select_option("#class", label="<b>dog")
    assert names(page) == ["2<.jpg"]
    page.select_option("#kind", label="all errors")
    page.select_option("#class", label="all classes")
    page.select_option("#order", label="by name")
    assert names(page) == [f"{i}<.jpg" for i in range(5)]


def test_tables_sort_and_pictures_enlarge(page):
    head = page.locator("#classes th", has_text="class")
    first = lambda: page.locator("#classes tbody td").first.inner_text()
    head.click()
    below = first()
    head.click()
    assert {below, first()} == {"<b>dog", "cat"}
    page.locator(".picture").first.click()
    assert page.locator(".card.large").count() == 1
