fn main() -> std::process::ExitCode {
    phi::cli::main()
}
