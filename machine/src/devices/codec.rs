//! Codecs on the audio link: `hda-output` and `hda-micro`, as far as verbs about identity, stream and format go.

/// Node of the converter of the output codec, and of the capture codec.
const OUTPUT_CONVERTER: u8 = 2;
const CAPTURE_CONVERTER: u8 = 4;

/// One codec with one converter.
#[derive(Debug)]
pub(super) struct Codec {
    /// Plays; captures otherwise.
    pub(super) plays: bool,
    /// Stream tag that the converter listens to; zero is none.
    pub(super) tag: u8,
    format: u16,
    amplifier: u16,
    pin: u8,
    power: u8,
}

impl Codec {
    pub(super) fn new(plays: bool) -> Self {
        Self { plays, tag: 0, format: 0, amplifier: 0, pin: 0, power: 0 }
    }

    fn converter(&self) -> u8 {
        if self.plays { OUTPUT_CONVERTER } else { CAPTURE_CONVERTER }
    }

    /// Answers one command of the link: node in bits 27:20, verb below.
    pub(super) fn command(&mut self, command: u32) -> u32 {
        let node = (command >> 20) as u8;
        if let short @ (0x2 | 0x3 | 0xa | 0xb) = command >> 16 & 0xf {
            return self.short_verb(node, short, command as u16);
        }
        let payload = command as u8;
        let converter = node == self.converter();
        match command >> 8 & 0xfff {
            0xf00 => self.parameter(node, payload),
            0x706 if converter => {
                self.tag = payload >> 4;
                0
            }
            0xf06 if converter => u32::from(self.tag) << 4,
            0x707 => {
                self.pin = payload;
                0
            }
            0xf07 => self.pin.into(),
            0x705 => {
                self.power = payload & 3;
                0
            }
            0xf05 => u32::from(self.power) * 0x11,
            _ => 0,
        }
    }

    fn short_verb(&mut self, node: u8, verb: u32, payload: u16) -> u32 {
        if node != self.converter() {
            return 0;
        }
        match verb {
            0x2 => self.format = payload,
            0x3 => self.amplifier = payload,
            0xa => return self.format.into(),
            _ => return u32::from(self.amplifier & 0xff),
        }
        0
    }

    fn parameter(&self, node: u8, parameter: u8) -> u32 {
        match (node, parameter) {
            (0, 0x00) if self.plays => 0x1af4_0012,
            (0, 0x00) => 0x1af4_0032,
            (0, 0x02) => 0x0010_0101,
            (0, 0x04) => 0x0001_0001,
            (1, 0x04) => u32::from(self.converter()) << 16 | 2,
            (1, 0x05) => 1,
            (node, 0x09) if node == self.converter() => u32::from(!self.plays) << 20 | 0x1d,
            (_, 0x0a) => 0x0002_0060,
            (_, 0x0b) => 1,
            _ => 0,
        }
    }

    /// Whether the converter's format is 48 kHz, 16 bits, two channels.
    pub(super) fn is_set_up(&self) -> bool {
        self.format == 0x0011
    }
}
