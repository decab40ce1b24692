// The gates, by their endings' numbers: 2 is SwiGLU, 3 GEGELU.
DEVICE float gated(u32 kind, float gate, float up, float limit) {
    if (kind == 2) {
        return gate / (1.0f + expf(-gate)) * up;
    }
    float g = fminf(gate, limit);
    return g / (1.0f + expf(-1.702f * g)) * (fminf(fmaxf(up, -limit), limit) + 1.0f);
}
