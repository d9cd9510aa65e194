package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"nemoclaw/runtime"
)

var createFlags = []cli.Flag{
	&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "the bundle's `DIR`; default: this one"},
	&cli.StringFlag{Name: "console-socket", Usage: "send the terminal to the unix socket `FILE`"},
	&cli.StringFlag{Name: "pidfd-socket", Usage: "send init's pidfd to the unix socket `FILE`"},
	&cli.StringFlag{Name: "pid-file", Usage: "write init's pid to `FILE`"},
	&cli.BoolFlag{Name: "no-pivot", Usage: "do not use pivot_root, for a root on a ramdisk"},
	&cli.BoolFlag{Name: "no-new-keyring", Usage: "do not make a new session keyring"},
	&cli.IntFlag{Name: "preserve-fds", Usage: "pass `N` descriptors from 3 on to the program"},
}

func createOptions(c *cli.Context) (runtime.CreateOptions, error) {
	pidFile, err := absolute(c.String("pid-file"))
	if err != nil {
		return runtime.CreateOptions{}, err
	}
	console, err := absolute(c.String("console-socket"))
	if err != nil {
		return runtime.CreateOptions{}, err
	}
	pidfd, err := absolute(c.String("pidfd-socket"))
	return runtime.CreateOptions{
		Bundle: c.String("bundle"), Policy: c.String("policy"),
		ConsoleSocket: console, PidfdSocket: pidfd, PidFile: pidFile,
		NoPivot: c.Bool("no-pivot"), NoNewKeyring: c.Bool("no-new-keyring"), PreserveFDs: c.Int("preserve-fds"),
	}, err
}

// absolute fixes a path before the working directory becomes the bundle's.
func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

var createCommand = &cli.Command{
	Name:      "create",
	Usage:     "make a container whose program waits for start",
	ArgsUsage: "CONTAINER",
	Flags:     createFlags,
	Action: onID(1, func(c *cli.Context, r *runtime.Runtime, id string) error {
		o, err := createOptions(c)
		if err != nil {
			return err
		}
		return r.Create(id, o)
	}),
}

var runCommand = &cli.Command{
	Name:      "run",
	Usage:     "create and start a container, and stay with it",
	ArgsUsage: "CONTAINER",
	Flags: append([]cli.Flag{
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "do not stay with it"},
		&cli.BoolFlag{Name: "keep", Usage: "do not delete it when it has ended"},
		&cli.BoolFlag{Name: "no-subreaper", Usage: "do not become the parent of its orphans"},
	}, createFlags...),
	Action: onID(1, func(c *cli.Context, r *runtime.Runtime, id string) error {
		o, err := createOptions(c)
		if err != nil {
			return err
		}
		status, err := r.Run(id, runtime.RunOptions{CreateOptions: o, Detach: c.Bool("detach"), Keep: c.Bool("keep"), NoSubreaper: c.Bool("no-subreaper")})
		return ended(status, err)
	}),
}

// ended turns a program's exit status into the command's.
func ended(status int, err error) error {
	if err == nil && status != 0 {
		return exitStatus(status)
	}
	return err
}

var startCommand = &cli.Command{
	Name:      "start",
	Usage:     "let the program of a created container run",
	ArgsUsage: "CONTAINER",
	Action:    onID(1, func(_ *cli.Context, r *runtime.Runtime, id string) error { return r.Start(id) }),
}

var killCommand = &cli.Command{
	Name:      "kill",
	Usage:     "send a signal (default: SIGTERM) to the container's first process",
	ArgsUsage: "CONTAINER [SIGNAL]",
	Flags:     []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Hidden: true}},
	Action: onContainer(2, func(c *cli.Context, ctr *libcontainer.Container) error {
		signal, err := parseSignal(c.Args().Get(1))
		if err != nil {
			return err
		}
		err = ctr.Signal(signal)
		if errors.Is(err, libcontainer.ErrNotRunning) && c.Bool("all") {
			return nil
		}
		return err
	}),
}

func parseSignal(s string) (unix.Signal, error) {
	if s == "" {
		return unix.SIGTERM, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		return unix.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum(name); n != 0 {
		return n, nil
	}
	return 0, fmt.Errorf("unknown signal %q", s)
}

var deleteCommand = &cli.Command{
	Name:      "delete",
	Usage:     "remove a container that has ended; its audit log stays",
	ArgsUsage: "CONTAINER",
	Flags:     []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill it first if it runs"}},
	Action: onID(1, func(c *cli.Context, r *runtime.Runtime, id string) error {
		err := r.Delete(id, c.Bool("force"))
		if errors.Is(err, libcontainer.ErrNotExist) && c.Bool("force") {
			return nil
		}
		return err
	}),
}

var repairCommand = &cli.Command{
	Name:      "repair",
	Usage:     "start the gateway of a container again that was lost, or sweep away what dead sandboxes left",
	ArgsUsage: "[CONTAINER]",
	Action: func(c *cli.Context) error {
		if err := wants(c, 0, 1); err != nil {
			return err
		}
		r, err := engine(c)
		if err != nil {
			return err
		}
		if !c.Args().Present() {
			gone, err := r.Sweep()
			for _, name := range gone {
				fmt.Fprintf(c.App.Writer, "removed what was left of %s\n", name)
			}
			return err
		}
		id := c.Args().First()
		lost, err := r.Repair(id)
		if err == nil && lost {
			fmt.Fprintf(c.App.Writer, "the gateway of %s is started again\n", id)
		} else if err == nil {
			fmt.Fprintf(c.App.Writer, "the gateway of %s lives\n", id)
		}
		return err
	},
}

var pauseCommand = &cli.Command{
	Name:      "pause",
	Usage:     "stop all processes of a container where they are",
	ArgsUsage: "CONTAINER",
	Action:    onContainer(1, func(_ *cli.Context, ctr *libcontainer.Container) error { return ctr.Pause() }),
}

var resumeCommand = &cli.Command{
	Name:      "resume",
	Usage:     "let the processes of a paused container go on",
	ArgsUsage: "CONTAINER",
	Action:    onContainer(1, func(_ *cli.Context, ctr *libcontainer.Container) error { return ctr.Resume() }),
}
