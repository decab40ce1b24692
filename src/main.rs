fn main() -> std::process::ExitCode {
    quieten_drivers();
    phi::cli::main()
}

/// A layer of Mesa looks for a display while graphics processors are listed, and complains on stderr where there is
/// none. All it does is to reorder them, for users who ask for it by a variable of its own.
#[cfg(target_os = "linux")]
fn quieten_drivers() {
    let absent = |name| std::env::var_os(name).is_none();
    if ["WAYLAND_DISPLAY", "MESA_VK_DEVICE_SELECT", "NODEVICE_SELECT"].into_iter().all(absent) {
        // Sound: this is the only thread there is yet.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

#[cfg(not(target_os = "linux"))]
fn quieten_drivers() {}
