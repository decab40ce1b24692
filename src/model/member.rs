//! Which published model a file is, told by its shape.

use super::{Architecture, Hyper};

/// What a model's shape says about its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub architecture: Architecture,
    pub layers: usize,
    /// Elements of a hidden state.
    pub hidden: usize,
    /// Elements of the feed-forward layer, or of one expert's.
    pub feed_forward: usize,
    pub kv_heads: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Tokens the model was made for.
    pub context: usize,
}

impl Shape {
    /// That of a model with these hyper-parameters and so many tokens.
    pub fn of(hyper: &Hyper, vocabulary: usize) -> Self {
        Self {
            architecture: hyper.architecture,
            layers: hyper.layers,
            hidden: hyper.hidden,
            feed_forward: hyper.feed_forward,
            kv_heads: hyper.kv_heads,
            vocabulary,
            context: hyper.context,
        }
    }

    /// The published models of this shape; `None` if there are none.
    pub fn member(&self) -> Option<&'static str> {
        use Architecture::{Phi2, Phi3, Phi3Small, PhiMoe};
        let long = self.context > 1 << 16;
        Some(match (self.architecture, self.layers, self.hidden, self.feed_forward) {
            (Phi2, 24, 2048, 8192) => "Phi-1 or Phi-1.5",
            (Phi2, 32, 2560, 10240) => "Phi-2",
            (Phi3, 32, 3072, 8192) if self.kv_heads == 8 && self.vocabulary > 200_000 => "Phi-4-mini",
            (Phi3, 32, 3072, 8192) if self.vocabulary == 32_064 && long => "Phi-3-mini-128k or Phi-3.5-mini",
            (Phi3, 32, 3072, 8192) if self.vocabulary == 32_064 => "Phi-3-mini-4k",
            (Phi3, 40, 5120, 17920) if self.vocabulary == 32_064 && long => "Phi-3-medium-128k",
            (Phi3, 40, 5120, 17920) if self.vocabulary == 32_064 => "Phi-3-medium-4k",
            (Phi3, 40, 5120, 17920) if self.vocabulary == 100_352 && self.context > 16_384 => {
                "Phi-4-reasoning"
            }
            (Phi3, 40, 5120, 17920) if self.vocabulary == 100_352 => "Phi-4",
            (Phi3Small, 32, 4096, 14336) if long => "Phi-3-small-128k",
            (Phi3Small, 32, 4096, 14336) => "Phi-3-small-8k",
            (PhiMoe, 32, 4096, 6400) => "Phi-3.5-MoE",
            (PhiMoe, 32, 4096, 960) => "Phi-mini-MoE",
            (PhiMoe, 32, 4096, 448) => "Phi-tiny-MoE",
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_shapes_have_their_names() {
        let shape = |architecture, layers, hidden, feed_forward, kv_heads, vocabulary, context| Shape {
            architecture,
            layers,
            hidden,
            feed_forward,
            kv_heads,
            vocabulary,
            context,
        };
        use Architecture::{Phi2, Phi3, PhiMoe};
        let cases = [
            (shape(Phi2, 24, 2048, 8192, 32, 51_200, 2048), Some("Phi-1 or Phi-1.5")),
            (shape(Phi3, 32, 3072, 8192, 32, 32_064, 131_072), Some("Phi-3-mini-128k or Phi-3.5-mini")),
            (shape(Phi3, 32, 3072, 8192, 32, 32_064, 4096), Some("Phi-3-mini-4k")),
            (shape(Phi3, 32, 3072, 8192, 8, 200_064, 131_072), Some("Phi-4-mini")),
            (shape(Phi3, 40, 5120, 17920, 10, 100_352, 16_384), Some("Phi-4")),
            (shape(Phi3, 40, 5120, 17920, 10, 100_352, 32_768), Some("Phi-4-reasoning")),
            (shape(PhiMoe, 32, 4096, 448, 4, 32_064, 4096), Some("Phi-tiny-MoE")),
            (shape(Phi3, 6, 256, 768, 4, 1504, 2048), None),
        ];
        for (shape, member) in cases {
            assert_eq!(shape.member(), member, "{shape:?}");
        }
    }
}
