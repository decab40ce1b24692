//! What matrix units do, written out, for devices without: the tests of all that is around them.

/// `text`, a kernel for matrix units, as one that goes without.
pub fn without_units(text: &str) -> String {
    let mut out = String::from("enable f16;\n");
    for line in text.lines().filter(|line| !line.starts_with("enable")) {
        let line = line
            .replace("coopLoadT<coop_mat16x16<f16, A>>(&ws[", "place(")
            .replace("coopLoad<coop_mat16x16<f16, B>>(&xs[", "place(")
            .replace(" + i], STRIDE)", " + i)")
            .replace("coop_mat16x16<f32, C>()", "array<f32, SQUARE / SUBGROUP>()")
            .replace("coopMultiplyAdd(", "multiply_add(lane, ")
            .replace("@builtin(subgroup_invocation_id) lane: u32,", "")
            .replace("@builtin(subgroup_id) subgroup: u32,", "")
            .replace(
                "let chunks",
                "let lane = thread % SUBGROUP; let subgroup = thread / SUBGROUP; let chunks",
            );
        let line = match line.split_once("coopStore(") {
            Some((marks, rest)) => {
                let (sum, rest) = rest.split_once(", &squares[").unwrap_or_default();
                format!(
                    "{marks}for (var i = 0u; i < SQUARE / SUBGROUP; i++) {{ squares[{} + i * SUBGROUP + lane] = {sum}[i]; }}",
                    rest.split(']').next().unwrap_or_default()
                )
            }
            None => line,
        };
        out.push_str(&line);
        out.push('\n');
    }
    out.push_str(
        "fn place(at: u32) -> u32 { return at; }
        fn multiply_add(lane: u32, a: u32, b: u32, c: array<f32, SQUARE / SUBGROUP>) -> array<f32, SQUARE / SUBGROUP> {
            var sum = c;
            for (var i = 0u; i < SQUARE / SUBGROUP; i++) {
                let at = i * SUBGROUP + lane;
                for (var k = 0u; k < 4u; k++) {
                    sum[i] += dot(vec4<f32>(ws[a + at % 16u * STRIDE + k]), vec4<f32>(xs[b + at / 16u * STRIDE + k]));
                }
            }
            return sum;
        }
",
    );
    out
}
