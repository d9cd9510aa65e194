package engines

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// containerd needs no configuration: its client names the shim, which is found
// beside nemoclaw. (The containerd is the one that dockerd brings up.)
func TestContainerd(t *testing.T) {
	docker(t, "version")
	root := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := run("tar", "-C", root, "-xf", cache(os.Getenv(cacheEnv)).busybox()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		program []string
		says    string
		code    int
	}{
		{"it runs", []string{"id", "-u"}, "0\n", 0},
		{"its exit code is the program's", []string{"sh", "-c", "exit 7"}, "", 7},
		{"layer 1", []string{"cat", "/root/secret"}, "Permission denied", 1},
		{"layer 2", []string{"grep", "-E", "^(NoNewPrivs|Seccomp_filters)", "/proc/self/status"}, "NoNewPrivs:\t1\nSeccomp_filters:\t2\n", 0},
		{"layers 3 and 4", []string{"wget", "-O-", "http://" + plain + "/hello"}, "403 Forbidden", 1},
		{"a program that is not there", []string{"no-such-program"}, "executable file not found", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := ctr(t, append([]string{"run", "--rm", "--runtime=io.containerd.nemoclaw.v1", "--rootfs", root, "engines-box"}, c.program...)...)
			if got.code != c.code || !strings.Contains(got.out+got.err, c.says) {
				t.Errorf("%v\nwant exit code %d and %q", got, c.code, c.says)
			}
		})
	}
	t.Run("exec", func(t *testing.T) {
		if s := ctr(t, "run", "-d", "--runtime=io.containerd.nemoclaw.v1", "--rootfs", root, "engines-long", "sleep", "1000"); s.code != 0 {
			t.Fatal(s)
		}
		t.Cleanup(func() {
			ctr(t, "task", "rm", "-f", "engines-long")
			ctr(t, "container", "rm", "engines-long")
		})
		if s := ctr(t, "task", "exec", "--exec-id=e", "engines-long", "cat", "/root/secret"); s.code != 1 || !strings.Contains(s.err, "Permission denied") {
			t.Error(s)
		}
	})
}

// ctr runs containerd's client in a containerd namespace of its own.
func ctr(t *testing.T, args ...string) said {
	t.Helper()
	cmd := exec.Command(filepath.Join(os.Getenv(cacheEnv), "engine/usr/bin/ctr"),
		append([]string{"--address=/run/docker/containerd/containerd.sock", "--namespace=engines"}, args...)...)
	var out, err bytes.Buffer
	cmd.Env, cmd.Stdout, cmd.Stderr = dockerd.env, &out, &err
	failed := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](failed); failed != nil && !exited {
		t.Fatal(failed)
	}
	return said{out.String(), err.String(), cmd.ProcessState.ExitCode()}
}
