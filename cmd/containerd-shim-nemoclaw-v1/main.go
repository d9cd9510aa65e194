// Command containerd-shim-nemoclaw-v1 makes "--runtime io.containerd.nemoclaw.v1"
// work with no configuration: it becomes the host's own containerd-shim-runc-v2,
// which speaks whatever containerd of this host speaks, and lets that find
// nemoclaw where it looks for runc. It runs nothing else and reads nothing.
//
// # Why not a shim of our own
//
// One built against containerd 2.4 refuses to start under containerd before
// 2.3, and one built against 1.7 cannot answer newer questions. The host's own
// always fits.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

const hostShim = "containerd-shim-runc-v2"

// exitFailed is the exit code when there is no shim to become.
const exitFailed = 1

func main() {
	if err := become(os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "containerd-shim-nemoclaw-v1: %v\n", err)
		os.Exit(exitFailed)
	}
}

// become replaces this process by the host's shim, and returns only if it
// cannot.
func become(args []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find myself: %w", err)
	}
	shim, err := findShim(self, args)
	if err != nil {
		return err
	}
	// The directory holds one link, runc, which leads to nemoclaw.
	links := filepath.Join(filepath.Dir(self), "..", "libexec", "nemoclaw", "shim")
	if _, err := os.Stat(filepath.Join(links, "runc")); err != nil {
		return fmt.Errorf("cannot find nemoclaw as %s/runc: is it installed by \"make install\"?", links)
	}
	if err := os.Setenv("PATH", links+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	err = syscall.Exec(shim, append([]string{shim}, args[1:]...), os.Environ())
	return fmt.Errorf("cannot execute %s: %w", shim, err)
}

// findShim looks beside us, beside the containerd that called us, and in PATH.
func findShim(self string, args []string) (string, error) {
	places := []string{filepath.Dir(self)}
	for i, a := range args {
		if (a == "-publish-binary" || a == "--publish-binary") && i+1 < len(args) {
			places = append(places, filepath.Dir(args[i+1]))
		}
	}
	for _, dir := range places {
		if p := filepath.Join(dir, hostShim); isExecutable(p) {
			return p, nil
		}
	}
	p, err := exec.LookPath(hostShim)
	if err != nil {
		return "", fmt.Errorf("cannot find %s: is containerd installed?", hostShim)
	}
	return p, nil
}

func isExecutable(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
