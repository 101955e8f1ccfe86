//! A page of HTML that needs no other file: styles, figures and pictures are inside.

use std::fmt::Write;

use super::figure::{SERIES, SERIES_DARK, escape};

const STYLE: &str = include_str!("style.css");

/// A page in the making.
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// A page with its heading and a line below it.
    pub fn new(title: &str, below: &str) -> Self {
        Self {
            title: title.to_owned(),
            body: format!(
                "<h1>{}</h1>\n<p class=\"below\">{}</p>\n",
                escape(title),
                escape(below)
            ),
        }
    }

    /// Adds a heading.
    pub fn heading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>", escape(text));
    }

    /// Adds a heading below a heading.
    pub fn subheading(&mut self, text: &str) {
        let _ = writeln!(self.body, "<h3>{}</h3>", escape(text));
    }

    /// Adds a paragraph.
    pub fn text(&mut self, text: &str) {
        let _ = writeln!(self.body, "<p>{}</p>", escape(text));
    }

    /// Adds large numbers with what they are: (number, what).
    pub fn figures(&mut self, figures: &[(String, String)]) {
        self.body.push_str("<div class=\"numbers\">");
        for (number, what) in figures {
            let _ = write!(
                self.body,
                "<div><b>{}</b><span>{}</span></div>",
                escape(number),
                escape(what)
            );
        }
        self.body.push_str("</div>\n");
    }

    /// Adds a drawing.
    pub fn svg(&mut self, svg: &str) {
        let _ = writeln!(self.body, "<figure>{svg}</figure>");
    }

    /// Adds a PNG with its caption.
    pub fn picture(&mut self, png: &[u8], caption: &str) {
        let caption = escape(caption);
        let _ = writeln!(
            self.body,
            "<figure><img alt=\"{caption}\" src=\"data:image/png;base64,{}\"><figcaption>{caption}</figcaption></figure>",
            base64(png)
        );
    }

    /// Adds a table; its first column and its head are headings. With `folded`, it opens when that line is clicked.
    pub fn table(&mut self, folded: Option<&str>, head: &[String], rows: &[Vec<String>]) {
        if let Some(text) = folded {
            let _ = write!(self.body, "<details><summary>{}</summary>", escape(text));
        }
        self.body.push_str("<div class=\"wide\"><table><thead><tr>");
        for cell in head {
            let _ = write!(self.body, "<th scope=\"col\">{}</th>", escape(cell));
        }
        self.body.push_str("</tr></thead><tbody>\n");
        for row in rows {
            self.body.push_str("<tr>");
            for (n, cell) in row.iter().enumerate() {
                let _ = match n {
                    0 => write!(self.body, "<th scope=\"row\">{}</th>", escape(cell)),
                    _ => write!(self.body, "<td>{}</td>", escape(cell)),
                };
            }
            self.body.push_str("</tr>\n");
        }
        self.body.push_str("</tbody></table></div>");
        self.body.push_str(if folded.is_some() {
            "</details>\n"
        } else {
            "\n"
        });
    }

    /// The whole file.
    pub fn into_html(self) -> String {
        let colours = |series: &[[u8; 3]]| -> String {
            let one = |(n, [r, g, b]): (usize, &[u8; 3])| format!("--series-{n}:rgb({r} {g} {b});");
            series.iter().enumerate().map(one).collect()
        };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>{}</title>\n<style>\n:root{{{}}}\n@media screen and (prefers-color-scheme: dark){{:root{{{}}}}}\n{STYLE}</style>\n</head>\n<body>\n<main>\n{}<footer>Made by Fewlabel {}. Research software, not a medical device.</footer>\n</main>\n</body>\n</html>\n",
            escape(&self.title),
            colours(&SERIES),
            colours(&SERIES_DARK),
            self.body,
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut bits = 0u32;
        for n in 0..3 {
            bits = bits << 8 | u32::from(three.get(n).copied().unwrap_or(0));
        }
        for n in 0..4 {
            if n <= three.len() {
                let six = bits >> (18 - 6 * n) & 63;
                out.push(char::from(ALPHABET[six as usize]));
            } else {
                out.push('=');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_the_standard() {
        // RFC 4648, section 10.
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn a_page_is_whole_and_loads_nothing() {
        let mut page = Page::new("A & B", "below");
        page.heading("<script>");
        page.table(
            Some("more"),
            &["a".to_owned(), "b".to_owned()],
            &[vec!["1".to_owned(), "<2>".to_owned()]],
        );
        page.picture(b"png", "it's");
        let html = page.into_html();
        assert!(html.starts_with("<!DOCTYPE html>") && html.ends_with("</html>\n"));
        assert!(html.contains("&lt;script&gt;") && html.contains("<td>&lt;2&gt;</td>"));
        for outside in ["http://", "https://", "<script", "<link", "url(", "@import"] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
