package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The tree that file-heavy work is done in.
const (
	treeDirs  = 40
	treeFiles = 50 // in each
	treePath  = "/sandbox/tree"
)

// files measures work on files under all layers and under none, in the same
// image, which is this machine's own root seen through an overlay.
func (b *bench) files() (err error) {
	root, err := b.machineImage()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(root, unix.MNT_DETACH)) }()
	ways := []struct {
		name, contestant string
		profile          profile
	}{
		{"runc with Docker's profile", reference, dockerProfile},
		{"runc without seccomp", reference, noProfile},
		{"nemoclaw, all layers", nemoclaw, dockerProfile},
	}
	var clients []*remote
	defer func() {
		for _, c := range clients {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, w := range ways {
		c, err := b.contestant(w.contestant)
		if err != nil {
			return err
		}
		bundle, err := b.bundle("files "+w.name, w.profile, root, clientProgram, clientArg)
		if err != nil {
			return err
		}
		client, _, err := b.startIn(c, bundle)
		if err != nil {
			return err
		}
		clients = append(clients, client)
	}
	for _, work := range fileWork() {
		t := table{Title: "Files: " + work.name, Unit: "ms"}
		for _, w := range ways {
			s := series{Name: w.name, Against: ways[0].name}
			if w.contestant == nemoclaw && work.promised {
				s.Bar, s.Aim = 1.10, 1.03
			}
			t.Rows = append(t.Rows, s)
		}
		err := interleave(max(b.rounds/3, 1), len(ways), func(who int, counted bool) error {
			a, err := clients[who].ask(work.order)
			if err == nil && counted {
				t.add(who, milliseconds(time.Duration(a.Nanos)))
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: %w", work.name, err)
		}
		if err := b.print(t); err != nil {
			return err
		}
	}
	return nil
}

// fileJob is one kind of work; of some a bar is promised.
type fileJob struct {
	name     string
	promised bool
	order    order
}

// fileWork is what is done, as far as this machine has the programs.
func fileWork() []fileJob {
	work := []fileJob{
		{"find, 2,000 files, lstat of each", true, order{Op: "find", Path: treePath, Count: 20}},
		{"open, read, close, 2,000 files", true, order{Op: "open", Path: treePath, Count: 20}},
		// What two filters cost: a call that both always allow, one of which the
		// second looks at one argument, and one of which it looks at three.
		{"getppid, a million", false, order{Op: "getppid", Count: 1e6}},
		{"ioctl, a million", false, order{Op: "ioctl", Count: 1e6}},
		{"socket, a million", false, order{Op: "socket", Count: 1e6}},
	}
	if _, err := exec.LookPath("git"); err == nil {
		work = append(work, fileJob{"git status, 2,000 files", true, order{Op: "run", Path: treePath, Count: 10, Args: []string{"git", "-c", "safe.directory=*", "status", "--porcelain"}}})
	}
	if _, err := exec.LookPath("cc"); err == nil {
		work = append(work, fileJob{"compile a C file", true, order{Op: "run", Path: treePath, Count: 3, Args: []string{"cc", "-O1", "-c", "-o", "/tmp/bench.o", "main.c"}}})
	}
	return work
}

// machineImage lays a writable layer over the machine's root, with this program
// and a repository in it.
func (b *bench) machineImage() (string, error) {
	root := filepath.Join(b.scratch, "machine")
	upper, work := filepath.Join(b.scratch, "upper"), filepath.Join(b.scratch, "work")
	for _, dir := range []string{root, filepath.Join(upper, "usr/bin"), work, filepath.Join(upper, treePath), filepath.Join(upper, "tmp")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	if err := copyProgram("/proc/self/exe", filepath.Join(upper, clientProgram)); err != nil {
		return "", err
	}
	tree := filepath.Join(upper, treePath)
	for d := range treeDirs {
		dir := filepath.Join(tree, fmt.Sprint("part", d), "of", "it")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		for f := range treeFiles {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(f, ".txt")), []byte(fmt.Sprintln(d, f)), 0o644); err != nil {
				return "", err
			}
		}
	}
	source := "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\nint main(void) { return puts(\"hello\") < 0; }\n"
	if err := os.WriteFile(filepath.Join(tree, "main.c"), []byte(source), 0o644); err != nil {
		return "", err
	}
	if _, err := exec.LookPath("git"); err == nil {
		for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=bench", "-c", "user.email=bench@example.org", "commit", "-qm", "all"}} {
			cmd := exec.Command("git", args...)
			cmd.Dir = tree
			cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
			if out, err := cmd.CombinedOutput(); err != nil {
				return "", fmt.Errorf("git %s: %w: %s", args[0], err, out)
			}
		}
	}
	options := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s", upper, work)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return "", fmt.Errorf("cannot lay a layer over the machine's root: %w", err)
	}
	return root, nil
}
