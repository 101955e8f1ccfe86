//! A drawing of simple shapes, as SVG for pages; [`super::picture`] draws the same as pixels.

use std::fmt::Write;

/// What a shape is coloured as; the page and the picture know the colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Text and axes.
    Text,
    /// Text of less weight.
    Faint,
    /// Lines of the grid.
    Grid,
    /// Of one of several things.
    Series(usize),
}

/// Colours of [`Ink::Series`] on white: apart from each other for most forms of colour blindness.
pub const SERIES: [[u8; 3]; 8] = [
    [0, 98, 168],
    [200, 76, 0],
    [0, 136, 98],
    [176, 75, 138],
    [158, 112, 0],
    [66, 145, 190],
    [110, 84, 180],
    [92, 92, 92],
];
/// The same on a dark background.
pub const SERIES_DARK: [[u8; 3]; 8] = [
    [92, 172, 238],
    [245, 143, 77],
    [64, 200, 158],
    [226, 142, 195],
    [222, 182, 70],
    [142, 206, 240],
    [178, 158, 240],
    [178, 178, 178],
];

/// Where a text is fixed to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// Its left end.
    Start,
    /// Its middle.
    Middle,
    /// Its right end.
    End,
}

/// A shape; lengths are in pixels of the SVG, y downwards.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// A line through points; dashed with this length of dash, 0 for none.
    Path {
        /// Points.
        points: Vec<[f64; 2]>,
        /// Width.
        width: f64,
        /// Colour.
        ink: Ink,
        /// From 0 to 1.
        opacity: f64,
        /// Length of a dash and of a gap.
        dash: f64,
    },
    /// A filled rectangle.
    Bar {
        /// Upper left corner.
        from: [f64; 2],
        /// Width and height.
        size: [f64; 2],
        /// Colour.
        ink: Ink,
        /// From 0 to 1.
        opacity: f64,
    },
    /// A filled circle.
    Dot {
        /// Middle.
        at: [f64; 2],
        /// Radius.
        radius: f64,
        /// Colour.
        ink: Ink,
        /// From 0 to 1.
        opacity: f64,
    },
    /// One line of text.
    Text {
        /// Point on the base line.
        at: [f64; 2],
        /// Which part of the text is there.
        anchor: Anchor,
        /// Size of the font.
        size: f64,
        /// Colour.
        ink: Ink,
        /// Its characters.
        text: String,
    },
}

/// A drawing.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Width and height.
    pub size: [f64; 2],
    /// In the order of drawing.
    pub shapes: Vec<Shape>,
}

impl Figure {
    /// An empty drawing.
    pub fn new(width: f64, height: f64) -> Self {
        Self {
            size: [width, height],
            shapes: Vec::new(),
        }
    }

    /// Adds a line.
    pub fn line(&mut self, from: [f64; 2], to: [f64; 2], width: f64, ink: Ink) {
        self.path(vec![from, to], width, ink, 1.0, 0.0);
    }

    /// Adds a line through points.
    pub fn path(&mut self, points: Vec<[f64; 2]>, width: f64, ink: Ink, opacity: f64, dash: f64) {
        self.shapes.push(Shape::Path {
            points,
            width,
            ink,
            opacity,
            dash,
        });
    }

    /// Adds a filled rectangle.
    pub fn bar(&mut self, from: [f64; 2], size: [f64; 2], ink: Ink, opacity: f64) {
        self.shapes.push(Shape::Bar {
            from,
            size,
            ink,
            opacity,
        });
    }

    /// Adds a circle.
    pub fn dot(&mut self, at: [f64; 2], radius: f64, ink: Ink, opacity: f64) {
        self.shapes.push(Shape::Dot {
            at,
            radius,
            ink,
            opacity,
        });
    }

    /// Adds a line of text.
    pub fn text(
        &mut self,
        at: [f64; 2],
        anchor: Anchor,
        size: f64,
        ink: Ink,
        text: impl Into<String>,
    ) {
        self.shapes.push(Shape::Text {
            at,
            anchor,
            size,
            ink,
            text: text.into(),
        });
    }

    /// The drawing as an element of a page whose styles have the colours; `label` says what is seen.
    pub fn to_svg(&self, label: &str) -> String {
        let [width, height] = self.size;
        let mut svg = format!(
            "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">\n",
            escape(label)
        );
        for shape in &self.shapes {
            // Writing to a string cannot fail.
            let _ = match shape {
                Shape::Path {
                    points,
                    width,
                    ink,
                    opacity,
                    dash,
                } => {
                    let points: Vec<_> = points
                        .iter()
                        .map(|[x, y]| format!("{x:.1},{y:.1}"))
                        .collect();
                    let dash = match *dash {
                        0.0 => String::new(),
                        dash => format!(" stroke-dasharray=\"{dash}\""),
                    };
                    writeln!(
                        svg,
                        "<polyline points=\"{}\" fill=\"none\" style=\"stroke:{}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" opacity=\"{opacity}\"{dash}/>",
                        points.join(" "),
                        variable(*ink)
                    )
                }
                Shape::Bar {
                    from: [x, y],
                    size: [width, height],
                    ink,
                    opacity,
                } => writeln!(
                    svg,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" style=\"fill:{}\" opacity=\"{opacity}\"/>",
                    variable(*ink)
                ),
                Shape::Dot {
                    at: [x, y],
                    radius,
                    ink,
                    opacity,
                } => writeln!(
                    svg,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" style=\"fill:{}\" opacity=\"{opacity}\"/>",
                    variable(*ink)
                ),
                Shape::Text {
                    at: [x, y],
                    anchor,
                    size,
                    ink,
                    text,
                } => {
                    let anchor = match anchor {
                        Anchor::Start => "start",
                        Anchor::Middle => "middle",
                        Anchor::End => "end",
                    };
                    writeln!(
                        svg,
                        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" style=\"fill:{}\">{}</text>",
                        variable(*ink),
                        escape(text)
                    )
                }
            };
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn variable(ink: Ink) -> String {
    match ink {
        Ink::Text => "var(--text)".to_owned(),
        Ink::Faint => "var(--faint)".to_owned(),
        Ink::Grid => "var(--grid)".to_owned(),
        Ink::Series(n) => format!("var(--series-{})", n % SERIES.len()),
    }
}

/// Text as it may stand in elements and attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_every_shape_is_there() {
        let mut figure = Figure::new(100.0, 50.0);
        figure.line([0.0, 0.0], [10.0, 5.0], 1.0, Ink::Grid);
        figure.bar([1.0, 2.0], [3.0, 4.0], Ink::Series(9), 0.5);
        figure.dot([5.0, 5.0], 2.0, Ink::Text, 1.0);
        figure.text([5.0, 5.0], Anchor::End, 12.0, Ink::Faint, "a<b & \"c\"");
        let svg = figure.to_svg("<x>");
        assert!(
            svg.contains("a&lt;b &amp; &quot;c&quot;") && svg.contains("aria-label=\"&lt;x&gt;\"")
        );
        for part in [
            "<polyline",
            "<rect",
            "<circle",
            "var(--series-1)",
            "text-anchor=\"end\"",
        ] {
            assert!(svg.contains(part), "{part}");
        }
    }
}
