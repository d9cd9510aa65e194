// Package arm64 runs the launcher for arm64 on another machine, as far as an
// emulator of user programs goes: it has neither Landlock nor seccomp. It starts
// no container and changes nothing.
package arm64
