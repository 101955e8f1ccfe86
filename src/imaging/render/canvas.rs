//! Pixels, text and the PNG encoder.

use super::font;

/// An RGB picture. What is drawn outside of it is passed over.
pub struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Canvas {
    /// Height of letters at scale 1.
    pub const TEXT_HEIGHT: usize = font::HEIGHT;

    /// A picture of one colour.
    pub fn new(width: usize, height: usize, background: [u8; 3]) -> Self {
        Self {
            width,
            height,
            pixels: vec![background; width * height],
        }
    }

    /// Sets a pixel.
    pub fn set(&mut self, x: usize, y: usize, color: [u8; 3]) {
        if x < self.width && y < self.height {
            self.pixels[y * self.width + x] = color;
        }
    }

    /// Mixes `share` (0 to 1) of a colour into a pixel.
    pub fn blend(&mut self, x: usize, y: usize, color: [u8; 3], share: f32) {
        if x < self.width && y < self.height {
            let pixel = &mut self.pixels[y * self.width + x];
            for (old, new) in pixel.iter_mut().zip(color) {
                *old = (f32::from(*old) + (f32::from(new) - f32::from(*old)) * share).round() as u8;
            }
        }
    }

    /// The picture at one `factor`-th of its size; each pixel is the mean of those it stands for.
    pub fn shrunk(&self, factor: usize) -> Self {
        let (width, height) = (self.width / factor, self.height / factor);
        let mut small = Self::new(width, height, [0; 3]);
        let count = (factor * factor) as u32;
        for y in 0..height {
            for x in 0..width {
                let mut sum = [0u32; 3];
                for row in y * factor..(y + 1) * factor {
                    for pixel in &self.pixels[row * self.width + x * factor..][..factor] {
                        for (sum, value) in sum.iter_mut().zip(pixel) {
                            *sum += u32::from(*value);
                        }
                    }
                }
                small.set(x, y, sum.map(|sum| ((sum + count / 2) / count) as u8));
            }
        }
        small
    }

    pub(super) fn paste(&mut self, left: usize, top: usize, other: &Self) {
        for y in 0..other.height {
            for x in 0..other.width {
                self.set(left + x, top + y, other.pixels[y * other.width + x]);
            }
        }
    }

    /// Fills a square.
    pub fn square(&mut self, left: usize, top: usize, size: usize, color: [u8; 3]) {
        for y in top..top + size {
            for x in left..left + size {
                self.set(x, y, color);
            }
        }
    }

    /// Width of a line of text at a scale.
    pub fn text_width(text: &str, scale: usize) -> usize {
        (text.chars().count() * (font::WIDTH + 1)).saturating_sub(1) * scale
    }

    /// One line of text, its upper left corner at (`left`, `top`); letters are [`Self::TEXT_HEIGHT`] times `scale` high,
    /// and some reach below.
    pub fn text(&mut self, left: usize, top: usize, scale: usize, color: [u8; 3], text: &str) {
        for (n, c) in text.chars().enumerate() {
            let first = left + n * (font::WIDTH + 1) * scale;
            let top = top + font::drop(c) * scale;
            for (row, bits) in font::glyph(c).iter().enumerate() {
                for column in 0..font::WIDTH {
                    if bits >> (font::WIDTH - 1 - column) & 1 == 1 {
                        self.square(first + column * scale, top + row * scale, scale, color);
                    }
                }
            }
        }
    }

    /// The picture as a PNG file.
    ///
    /// # Errors
    /// When the encoder fails.
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
