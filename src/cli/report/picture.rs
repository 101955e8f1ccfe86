//! A drawing as pixels on white: the same shapes that [`super::figure`] writes as SVG.

use anyhow::Context;

use super::figure::{Anchor, Figure, Ink, SERIES, Shape};
use crate::imaging::render::Canvas;

/// Pixels of the PNG for one of the SVG.
const SCALE: usize = 2;
/// Drawn larger by this and shrunk, for smooth edges.
const FINE: usize = 3;
/// Height of capital letters for a font size of 1.
const CAPITALS: f64 = 0.68;
const PAPER: [u8; 3] = [255; 3];

/// The PNG of a drawing.
///
/// # Errors
/// When the encoder fails.
pub fn png(figure: &Figure) -> anyhow::Result<Vec<u8>> {
    let unit = (SCALE * FINE) as f64;
    let [width, height] = figure
        .size
        .map(|length| (length * unit).ceil().max(1.0) as usize);
    let mut canvas = Canvas::new(width, height, PAPER);
    for shape in &figure.shapes {
        draw(&mut canvas, shape, unit);
    }
    canvas
        .shrunk(FINE)
        .into_png()
        .context("the figure could not be encoded")
}

fn colour(ink: Ink) -> [u8; 3] {
    match ink {
        Ink::Text => [29, 33, 39],
        Ink::Faint => [96, 106, 120],
        Ink::Grid => [223, 227, 232],
        Ink::Series(n) => SERIES[n % SERIES.len()],
    }
}

fn draw(canvas: &mut Canvas, shape: &Shape, unit: f64) {
    match shape {
        Shape::Path {
            points,
            width,
            ink,
            opacity,
            dash,
        } => {
            let points: Vec<_> = points.iter().map(|point| point.map(|v| v * unit)).collect();
            let pieces = if *dash > 0.0 {
                dashes(&points, dash * unit)
            } else {
                points.windows(2).map(|pair| [pair[0], pair[1]]).collect()
            };
            path(canvas, &pieces, width * unit / 2.0, colour(*ink), *opacity);
        }
        Shape::Bar {
            from,
            size,
            ink,
            opacity,
        } => {
            let [left, top] = from.map(|v| (v * unit).round().max(0.0) as usize);
            let end = |axis: usize| ((from[axis] + size[axis]) * unit).round().max(0.0) as usize;
            for y in top..end(1) {
                for x in left..end(0) {
                    canvas.blend(x, y, colour(*ink), *opacity as f32);
                }
            }
        }
        Shape::Dot {
            at,
            radius,
            ink,
            opacity,
        } => {
            let at = at.map(|v| v * unit);
            path(canvas, &[[at, at]], radius * unit, colour(*ink), *opacity);
        }
        Shape::Text {
            at,
            anchor,
            size,
            ink,
            text,
        } => {
            let height = Canvas::TEXT_HEIGHT;
            let scale = ((size * CAPITALS * unit / height as f64).round() as usize).max(1);
            let width = Canvas::text_width(text, scale) as f64;
            let left = at[0] * unit
                - match anchor {
                    Anchor::Start => 0.0,
                    Anchor::Middle => width / 2.0,
                    Anchor::End => width,
                };
            let top = at[1] * unit - (height * scale) as f64;
            let [left, top] = [left, top].map(|v| v.round().max(0.0) as usize);
            canvas.text(left, top, scale, colour(*ink), text);
        }
    }
}

/// The drawn pieces of a dashed line; a gap is as long as a dash.
fn dashes(points: &[[f64; 2]], dash: f64) -> Vec<[[f64; 2]; 2]> {
    let mut pieces = Vec::new();
    let mut walked = 0.0;
    for pair in points.windows(2) {
        let [from, to] = [pair[0], pair[1]];
        let length = (to[0] - from[0]).hypot(to[1] - from[1]);
        let point = |mm: f64| {
            let share = if length > 0.0 { mm / length } else { 0.0 };
            [0, 1].map(|axis| from[axis] + (to[axis] - from[axis]) * share)
        };
        let mut at = 0.0;
        while at < length {
            let phase = (walked + at) % (2.0 * dash);
            // At least a pixel, so that rounding cannot stop the walk.
            let end = (at + (dash - phase % dash).max(1.0)).min(length);
            if phase < dash {
                pieces.push([point(at), point(end)]);
            }
            at = end;
        }
        walked += length;
    }
    pieces
}

/// Colours the pixels within `radius` of any piece, each once.
fn path(canvas: &mut Canvas, pieces: &[[[f64; 2]; 2]], radius: f64, color: [u8; 3], opacity: f64) {
    let mut covered = std::collections::BTreeMap::<usize, Vec<[usize; 2]>>::new();
    for [from, to] in pieces {
        let top = (from[1].min(to[1]) - radius).floor().max(0.0) as usize;
        let bottom = (from[1].max(to[1]) + radius).ceil().max(0.0) as usize;
        for y in top..=bottom {
            if let Some([left, right]) = span(*from, *to, radius, y as f64 + 0.5) {
                let span = [left, right].map(|x| (x - 0.5).ceil().max(0.0) as usize);
                covered.entry(y).or_default().push(span);
            }
        }
    }
    for (y, mut spans) in covered {
        spans.sort_unstable();
        let mut done = 0;
        for [left, right] in spans {
            for x in left.max(done)..right {
                canvas.blend(x, y, color, opacity as f32);
            }
            done = done.max(right);
        }
    }
}

/// Where the line at height `y` is within `radius` of the piece from `a` to `b`.
fn span(a: [f64; 2], b: [f64; 2], radius: f64, y: f64) -> Option<[f64; 2]> {
    let mut found: Option<[f64; 2]> = None;
    let mut add = |left: f64, right: f64| {
        let [l, r] = found.unwrap_or([left, right]);
        found = Some([l.min(left), r.max(right)]);
    };
    for end in [a, b] {
        let rest = radius * radius - (y - end[1]) * (y - end[1]);
        if rest >= 0.0 {
            add(end[0] - rest.sqrt(), end[0] + rest.sqrt());
        }
    }
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let length = dx.hypot(dy);
    if length > 0.0 {
        // The corners of the rectangle around the piece; where its sides cross the line.
        let (nx, ny) = (-dy / length * radius, dx / length * radius);
        let corners = [
            [a[0] + nx, a[1] + ny],
            [b[0] + nx, b[1] + ny],
            [b[0] - nx, b[1] - ny],
            [a[0] - nx, a[1] - ny],
        ];
        for n in 0..4 {
            let (p, q) = (corners[n], corners[(n + 1) % 4]);
            if (p[1] <= y) != (q[1] <= y) {
                let x = p[0] + (q[0] - p[0]) * (y - p[1]) / (q[1] - p[1]);
                add(x, x);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(figure: &Figure) -> (usize, Vec<u8>) {
        let png = png(figure).unwrap();
        let mut reader = png::Decoder::new(std::io::Cursor::new(png))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        (info.width as usize, pixels)
    }

    #[test]
    fn shapes_are_where_they_belong() {
        let mut figure = Figure::new(40.0, 30.0);
        figure.line([2.0, 10.0], [38.0, 10.0], 2.0, Ink::Text);
        figure.bar([10.0, 20.0], [4.0, 4.0], Ink::Series(0), 1.0);
        figure.dot([30.0, 22.0], 3.0, Ink::Series(1), 1.0);
        let (width, pixels) = pixels(&figure);
        let at = |x: usize, y: usize| {
            let at = (y * SCALE * width + x * SCALE) * 3;
            [pixels[at], pixels[at + 1], pixels[at + 2]]
        };
        assert_eq!(width, 80);
        assert_eq!(at(20, 10), colour(Ink::Text));
        assert_eq!(at(20, 13), PAPER);
        assert_eq!(at(12, 22), SERIES[0]);
        assert_eq!(at(30, 22), SERIES[1]);
        assert_eq!(at(35, 22), PAPER);
    }

    #[test]
    fn a_slanted_line_that_crosses_itself_is_mixed_once() {
        let mut figure = Figure::new(20.0, 20.0);
        let points = vec![[2.0, 2.0], [18.0, 18.0], [2.0, 18.0], [18.0, 2.0]];
        figure.path(points, 3.0, Ink::Text, 0.5, 0.0);
        let (width, pixels) = pixels(&figure);
        let darkest = pixels.iter().min().unwrap();
        assert_eq!(*darkest, ((255.0 + 29.0) / 2.0f32).round() as u8);
        assert_eq!(pixels[(20 * width + 20) * 3], *darkest);
    }

    #[test]
    fn dashes_are_half_of_the_line() {
        let pieces = dashes(&[[0.0, 0.0], [50.0, 0.0], [50.0, 50.0]], 10.0);
        let length: f64 = pieces
            .iter()
            .map(|[a, b]| (b[0] - a[0]).hypot(b[1] - a[1]))
            .sum();
        assert!((length - 50.0).abs() < 1e-9, "{pieces:?}");
        assert!(dashes(&[[1.0, 1.0], [1.0, 1.0]], 4.0).is_empty());
    }
}
