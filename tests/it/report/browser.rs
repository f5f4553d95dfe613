//! The report in headless Chromium: it opens, its script runs under its own
//! policy, and nothing is wider than a phone.

use std::path::Path;

use crate::support::browser::{dump, find_or_skip};

#[test]
fn the_report_opens_in_a_browser_and_fits_a_phone() {
    let Some(browser) = find_or_skip() else { return };
    let home = tempfile::tempdir().unwrap();
    let page = super::html(&super::watched());
    let report = home.path().join("report.html");
    std::fs::write(&report, &page).unwrap();
    let dom = dump(&browser, &report, 1200);
    // The script turned the legend into switches: the policy let it run.
    assert_eq!(dom.matches("aria-pressed=\"false\"").count(), 4);
    assert_eq!(dom.matches("role=\"img\"").count(), page.matches("role=\"img\"").count());

    for width in [360, 390, 1200] {
        let measured = measure(&browser, home.path(), &page, width);
        let [inner, scroll, charts, rows] = measured[..] else { panic!("{measured:?}") };
        assert_eq!(inner, width);
        assert!(scroll <= width, "{scroll} px of content in a window of {width}");
        assert!(charts > 15, "{charts} charts have a size");
        assert!(rows > 20, "{rows} table rows have a size");
    }
}

/// Opens the page in a frame of a width, as a browser's own windows have a
/// least one, and returns inner width, scroll width, visible charts and rows.
fn measure(browser: &Path, home: &Path, page: &str, width: u32) -> Vec<u32> {
    const CHECK: &str = "<script>addEventListener('load', () => {
        const visible = (selector) => [...document.querySelectorAll(selector)]
            .filter((e) => e.getBoundingClientRect().width > 0).length;
        parent.postMessage([innerWidth, document.documentElement.scrollWidth,
            visible('svg[role=img]'), visible('tbody tr')].join(' '), '*');
    });</script></body>";
    // The page's own policy would refuse the check.
    let policy = page.find("<meta http-equiv").unwrap();
    let end = policy + page[policy..].find('>').unwrap() + 1;
    let copy = format!("{}{}", &page[..policy], &page[end..]).replace("</body>", CHECK);
    std::fs::write(home.join("copy.html"), copy).unwrap();
    let wrapper = home.join("wrapper.html");
    let frame = format!(
        "<!doctype html><body><script>addEventListener('message', (event) => {{
            document.body.dataset.measured = event.data; }});</script>
        <iframe src=\"copy.html\" style=\"border:0;width:{width}px;height:800px\"></iframe></body>"
    );
    std::fs::write(&wrapper, frame).unwrap();
    let dom = dump(browser, &wrapper, 1400);
    let (_, rest) = dom.split_once("data-measured=\"").unwrap_or_else(|| panic!("{dom}"));
    let (numbers, _) = rest.split_once('"').unwrap();
    numbers.split(' ').map(|number| number.parse().unwrap()).collect()
}
