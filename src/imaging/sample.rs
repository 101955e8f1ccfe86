//! The types a voxel has in a file.

use rayon::prelude::*;

/// Bytes converted by one task; large enough to hide the cost of starting it.
const CHUNK_VOXELS: usize = 1 << 16;

/// A scalar type as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sample {
    /// Unsigned 8 bit.
    U8,
    /// Signed 8 bit.
    I8,
    /// Unsigned 16 bit.
    U16,
    /// Signed 16 bit.
    I16,
    /// Unsigned 32 bit.
    U32,
    /// Signed 32 bit.
    I32,
    /// Unsigned 64 bit.
    U64,
    /// Signed 64 bit.
    I64,
    /// IEEE 754 single.
    F32,
    /// IEEE 754 double.
    F64,
}

impl Sample {
    /// Size of one value.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Name as numpy gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::U64 => "uint64",
            Self::I64 => "int64",
            Self::F32 => "float32",
            Self::F64 => "float64",
        }
    }

    /// The little-endian value at the start of `bytes`, of which there are enough.
    pub(crate) fn decode(self, bytes: &[u8]) -> f64 {
        fn le<const N: usize>(bytes: &[u8]) -> [u8; N] {
            let mut out = [0; N];
            out.copy_from_slice(&bytes[..N]);
            out
        }
        match self {
            Self::U8 => f64::from(bytes[0]),
            Self::I8 => f64::from(bytes[0] as i8),
            Self::U16 => f64::from(u16::from_le_bytes(le(bytes))),
            Self::I16 => f64::from(i16::from_le_bytes(le(bytes))),
            Self::U32 => f64::from(u32::from_le_bytes(le(bytes))),
            Self::I32 => f64::from(i32::from_le_bytes(le(bytes))),
            Self::U64 => u64::from_le_bytes(le(bytes)) as f64,
            Self::I64 => i64::from_le_bytes(le(bytes)) as f64,
            Self::F32 => f64::from(f32::from_le_bytes(le(bytes))),
            Self::F64 => f64::from_le_bytes(le(bytes)),
        }
    }

    /// Every value of `bytes` (little endian) through `convert`.
    pub(crate) fn map<T: Send>(
        self,
        bytes: &[u8],
        convert: impl Fn(f64) -> T + Sync + Send,
    ) -> Vec<T> {
        // One specialised loop per type: the match is outside of the loop.
        macro_rules! convert_all {
            ($($variant:ident),*) => {
                match self {
                    $(Self::$variant => self.map_with(bytes, |raw| convert(Self::$variant.decode(raw))),)*
                }
            };
        }
        convert_all!(U8, I8, U16, I16, U32, I32, U64, I64, F32, F64)
    }

    fn map_with<T: Send>(self, bytes: &[u8], convert: impl Fn(&[u8]) -> T + Sync + Send) -> Vec<T> {
        let size = self.size_bytes();
        bytes
            .par_chunks_exact(size)
            .with_min_len(CHUNK_VOXELS)
            .map(convert)
            .collect()
    }

    /// The first value of `bytes` (little endian) that `wanted` holds for.
    pub(crate) fn find(
        self,
        bytes: &[u8],
        wanted: impl Fn(f64) -> bool + Sync + Send,
    ) -> Option<f64> {
        macro_rules! find_first {
            ($($variant:ident),*) => {
                match self {
                    $(Self::$variant => self.find_with(bytes, |raw| wanted(Self::$variant.decode(raw))),)*
                }
            };
        }
        find_first!(U8, I8, U16, I16, U32, I32, U64, I64, F32, F64)
    }

    fn find_with(self, bytes: &[u8], wanted: impl Fn(&[u8]) -> bool + Sync + Send) -> Option<f64> {
        bytes
            .par_chunks_exact(self.size_bytes())
            .with_min_len(CHUNK_VOXELS)
            .find_first(|raw| wanted(raw))
            .map(|raw| self.decode(raw))
    }

    /// Turns big-endian values into little-endian ones, in place.
    pub(crate) fn swap_bytes(self, bytes: &mut [u8]) {
        for value in bytes.chunks_exact_mut(self.size_bytes()) {
            value.reverse();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_every_type() {
        let cases: [(Sample, &[u8], f64); 10] = [
            (Sample::U8, &[200], 200.0),
            (Sample::I8, &[200], -56.0),
            (Sample::U16, &[0x34, 0xf2], 62004.0),
            (Sample::I16, &[0x18, 0xfc], -1000.0),
            (Sample::U32, &[0xff; 4], 4294967295.0),
            (Sample::I32, &[0xff; 4], -1.0),
            (Sample::U64, &[0xff; 8], 18446744073709551615.0),
            (Sample::I64, &[0xff; 8], -1.0),
            (Sample::F32, &1.5f32.to_le_bytes(), 1.5),
            (Sample::F64, &(-2.25f64).to_le_bytes(), -2.25),
        ];
        for (sample, bytes, value) in cases {
            assert_eq!(sample.decode(bytes), value, "{sample:?}");
            assert_eq!(
                sample.map(&bytes.repeat(3), |v| v),
                vec![value; 3],
                "{sample:?}"
            );
            let mut swapped = bytes.to_vec();
            swapped.reverse();
            sample.swap_bytes(&mut swapped);
            assert_eq!(swapped, bytes);
        }
    }
}
