//! tokenizer.model: the pieces of a SentencePiece model, from its protocol buffer.
//!
//! Format: `ModelProto` in sentencepiece_model.proto of the SentencePiece project. Only field 1 (`pieces`: 1 text,
//! 2 score, 3 type) and, of field 2 (`trainer_spec`), 3 (`model_type`) are looked at.

use super::Fault;

/// A piece's type, with the numbers of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// An entry of the vocabulary; its id is its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: PieceKind,
}

/// What is read of a SentencePiece model.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePiece {
    pub pieces: Vec<Piece>,
    /// Whether it merges pairs by score (`BPE`) as opposed to choosing a whole segmentation (`UNIGRAM`, the default).
    pub is_bpe: bool,
}

/// `model_type`'s number for BPE.
const MODEL_TYPE_BPE: u64 = 2;

impl SentencePiece {
    /// Reads a `ModelProto`. Memory stays proportional to `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut model = Self { pieces: Vec::new(), is_bpe: false };
        let mut message = Message { bytes };
        while let Some((field, value)) = message.next()? {
            match (field, value) {
                (1, Field::Bytes(bytes)) => model.pieces.push(piece(bytes)?),
                (2, Field::Bytes(bytes)) => model.is_bpe = is_bpe(bytes)?,
                (1 | 2, _) => return Err(fault("a field is of the wrong type")),
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(fault("it has no pieces"));
        }
        Ok(model)
    }
}

fn piece(bytes: &[u8]) -> Result<Piece, Fault> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: PieceKind::Normal };
    let mut message = Message { bytes };
    while let Some((field, value)) = message.next()? {
        match (field, value) {
            (1, Field::Bytes(text)) => {
                let text = std::str::from_utf8(text).map_err(|_| fault("a piece is not valid UTF-8"))?;
                piece.text = text.to_owned();
            }
            (2, Field::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Field::Varint(number)) => {
                piece.kind = kind(number).ok_or_else(|| fault("a piece is of an unknown type"))?;
            }
            (1..=3, _) => return Err(fault("a piece has a field of the wrong type")),
            _ => {}
        }
    }
    if !piece.score.is_finite() {
        return Err(fault("a piece's score is no number"));
    }
    Ok(piece)
}

fn kind(number: u64) -> Option<PieceKind> {
    Some(match number {
        1 => PieceKind::Normal,
        2 => PieceKind::Unknown,
        3 => PieceKind::Control,
        4 => PieceKind::UserDefined,
        5 => PieceKind::Unused,
        6 => PieceKind::Byte,
        _ => return None,
    })
}

fn is_bpe(trainer: &[u8]) -> Result<bool, Fault> {
    let mut message = Message { bytes: trainer };
    let mut bpe = false;
    while let Some((field, value)) = message.next()? {
        if let (3, Field::Varint(kind)) = (field, value) {
            bpe = kind == MODEL_TYPE_BPE;
        }
    }
    Ok(bpe)
}

fn fault(what: &str) -> Fault {
    Fault::SentencePiece(what.to_owned())
}

/// A protocol buffer message that is still to be read.
struct Message<'a> {
    bytes: &'a [u8],
}

enum Field<'a> {
    Varint(u64),
    Fixed64,
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    /// The next field's number and value. Each call consumes at least one byte, so reading ends.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, Fault> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Field::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Field::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let bytes = self.take(4)?;
                Field::Fixed32(bytes.iter().rev().fold(0, |bits, &byte| bits << 8 | u32::from(byte)))
            }
            _ => return Err(fault("a field is of an unknown wire type")),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], Fault> {
        let count = usize::try_from(count).map_err(|_| fault("a length overflows"))?;
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(|| fault("it ends too early"))?;
        self.bytes = rest;
        Ok(taken)
    }

    /// A number in groups of 7 bits, least significant first; at most 10 bytes.
    fn varint(&mut self) -> Result<u64, Fault> {
        let mut number = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?.first().copied().unwrap_or(0);
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(fault("a number is too long"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces "<unk>" (type 2), "a" (score -1.5), then trainer_spec with model_type BPE.
    fn model() -> Vec<u8> {
        let mut bytes = vec![0x0a, 9, 0x0a, 5];
        bytes.extend_from_slice(b"<unk>");
        bytes.extend_from_slice(&[0x18, 2]);
        bytes.extend_from_slice(&[0x0a, 8, 0x0a, 1, b'a', 0x15]);
        bytes.extend_from_slice(&(-1.5_f32).to_le_bytes());
        bytes.extend_from_slice(&[0x12, 2, 0x18, 2]);
        bytes
    }

    #[test]
    fn pieces_are_read() {
        let model = SentencePiece::parse(&model()).unwrap();
        assert!(model.is_bpe);
        let [unknown, a] = &model.pieces[..] else { panic!("{model:?}") };
        assert_eq!((unknown.text.as_str(), unknown.score, unknown.kind), ("<unk>", 0.0, PieceKind::Unknown));
        assert_eq!((a.text.as_str(), a.score, a.kind), ("a", -1.5, PieceKind::Normal));
    }

    #[test]
    fn damaged_models_are_faults_and_never_panics() {
        let whole = model();
        for length in 0..whole.len() {
            // A prefix that ends between fields is a shorter model.
            let _ = SentencePiece::parse(&whole[..length]);
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                let _ = SentencePiece::parse(&damaged);
            }
        }
        let faults: [(&[u8], &str); 6] = [
            (&[], "no pieces"),
            (&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "too early"),
            (&[0x0a, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], "too long"),
            (&[0x0b], "wire type"),
            (&[0x0a, 2, 0x18, 9], "unknown type"),
            (&[0x0a, 3, 0x0a, 1, 0xff], "UTF-8"),
        ];
        for (bytes, expected) in faults {
            let fault = SentencePiece::parse(bytes).unwrap_err().to_string();
            assert!(fault.contains(expected), "{fault}");
        }
    }
}
