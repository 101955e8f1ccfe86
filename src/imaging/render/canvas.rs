//! Pixels, text and the PNG encoder.

use super::font;

/// An RGB picture.
pub(super) struct Canvas {
    pub width: usize,
    pub height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    pub fn new(width: usize, height: usize, background: [u8; 3]) -> Self {
        Self {
            width,
            height,
            pixels: vec![background; width * height],
        }
    }

    /// Sets a pixel; outside of the picture nothing happens.
    pub fn set(&mut self, x: usize, y: usize, color: [u8; 3]) {
        if x < self.width && y < self.height {
            self.pixels[y * self.width + x] = color;
        }
    }

    pub fn paste(&mut self, left: usize, top: usize, other: &Self) {
        for y in 0..other.height {
            for x in 0..other.width {
                self.set(left + x, top + y, other.pixels[y * other.width + x]);
            }
        }
    }

    pub fn square(&mut self, left: usize, top: usize, size: usize, color: [u8; 3]) {
        for y in top..top + size {
            for x in left..left + size {
                self.set(x, y, color);
            }
        }
    }

    /// One line of text, its upper left corner at (`left`, `top`).
    pub fn text(&mut self, left: usize, top: usize, scale: usize, color: [u8; 3], text: &str) {
        for (n, c) in text.chars().enumerate() {
            let first = left + n * (font::WIDTH + 1) * scale;
            for (row, bits) in font::glyph(c).iter().enumerate() {
                for column in 0..font::WIDTH {
                    if bits >> (font::WIDTH - 1 - column) & 1 == 1 {
                        self.square(first + column * scale, top + row * scale, scale, color);
                    }
                }
            }
        }
    }

    pub fn into_png(self) -> Result<Vec<u8>, png::EncodingError> {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, self.width as u32, self.height as u32);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(self.pixels.as_flattened())?;
        writer.finish()?;
        Ok(bytes)
    }
}
