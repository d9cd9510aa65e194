// Command nemoclaw is an OCI runtime that makes a container a sandbox: it is
// called by container engines as they call runc. It serves nothing and links
// neither the gateway nor an HTTP server: it is started several times for each
// container, and its start is part of every command's time.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/runc/libcontainer"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"nemoclaw/hooks"
	"nemoclaw/runtime"
	"nemoclaw/specs/settings"
)

// Set by the Makefile.
var (
	version = "0.1.0"
	commit  = ""
)

// Exit codes. A program that was run to its end gives its own, or 128 and the
// number of the signal that ended it.
const (
	exitOK     = 0
	exitFailed = 1   // the command failed
	exitUsage  = 2   // the command line is wrong
	exitExec   = 255 // exec could not start the program, as runc has it
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is the program: what it does to the world goes through its arguments and
// the commands' own work.
func run(args []string, stdout, stderr io.Writer) int {
	t := &tell{stderr: stderr}
	defer t.Close()
	err := newApp(t, stdout).Run(reorder(args))
	if err == nil {
		return exitOK
	}
	if s, ok := errors.AsType[exitStatus](err); ok {
		return int(s)
	}
	t.fault(err)
	switch {
	case isUsage(err):
		return exitUsage
	case errors.As(err, new(*execError)):
		return exitExec
	}
	return exitFailed
}

// exitStatus is how a container's program ended; nothing is printed for it.
type exitStatus int

func (s exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// execError marks what ends in exitExec.
type execError struct{ error }

func (e *execError) Unwrap() error { return e.error }

// usageError marks a command line that is wrong.
type usageError struct{ error }

func isUsage(err error) bool { return errors.As(err, new(usageError)) }

func newApp(t *tell, stdout io.Writer) *cli.App {
	cli.VersionPrinter = printVersion
	cli.OsExiter = func(int) {} // run decides
	app := &cli.App{
		Name:  "nemoclaw",
		Usage: "run containers as sandboxes for AI agents",
		Description: `nemoclaw is an OCI runtime: docker run --runtime=nemoclaw IMAGE, containerd,
and Kubernetes call it as they call runc. What a sandbox may do stands in a
policy file; without one the built-in policy applies. See "nemoclaw doctor" for
what this machine can do and "nemoclaw check" for what a policy says.`,
		Version:                version,
		Writer:                 stdout,
		ErrWriter:              t.stderr,
		UseShortOptionHandling: false,
		EnableBashCompletion:   true,
		HideHelpCommand:        true,
		ExitErrHandler:         func(*cli.Context, error) {},
		OnUsageError:           usage,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "debug", Usage: "log what libcontainer does"},
			&cli.StringFlag{Name: "log", Usage: "write logs to `FILE` instead of stderr"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "text or json"},
			&cli.StringFlag{Name: "root", Value: "/run/nemoclaw/containers", Usage: "keep libcontainer's state of containers in `DIR`"},
			&cli.BoolFlag{Name: "systemd-cgroup", Usage: "let systemd manage cgroups; cgroupsPath is then \"slice:prefix:name\""},
			&cli.StringFlag{Name: "policy", Usage: "confine by the policy of this `NAME` or path"},
			&cli.StringFlag{Name: "rootless", Value: "auto", Hidden: true},
			&cli.StringFlag{Name: "criu", Hidden: true},
		},
		Before: t.configure,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError{fmt.Errorf("unknown command %q", c.Args().First())}
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			createCommand, runCommand, startCommand, execCommand, killCommand, deleteCommand,
			pauseCommand, resumeCommand, updateCommand, stateCommand, listCommand, psCommand, specCommand, featuresCommand,
			checkCommand, doctorCommand, repairCommand,
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = usage
		c.HideHelpCommand = true
	}
	return app
}

func usage(_ *cli.Context, err error, _ bool) error { return usageError{err} }

func printVersion(c *cli.Context) {
	fmt.Fprintf(c.App.Writer, "nemoclaw version %s\n", version)
	if commit != "" {
		fmt.Fprintf(c.App.Writer, "commit: %s\n", commit)
	}
	fmt.Fprintf(c.App.Writer, "spec: %s\n", oci.Version)
}

// engine returns the runtime that the global flags describe.
func engine(c *cli.Context) (*runtime.Runtime, error) {
	s, err := settings.Load()
	if err != nil {
		return nil, err
	}
	root, err := filepath.Abs(c.String("root"))
	if err != nil {
		return nil, err
	}
	if root == "/" {
		return nil, usageError{errors.New("cannot use / as --root")}
	}
	gateway, err := gatewayProgram()
	if err != nil {
		return nil, err
	}
	return &runtime.Runtime{Root: root, SystemdCgroup: c.Bool("systemd-cgroup"), Settings: s, Gateway: gateway}, nil
}

// gatewayProgram finds the gateway beside ourselves; nothing in the environment
// can name another.
func gatewayProgram() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("cannot find %s: %w", hooks.GatewayProgram, err)
	}
	return filepath.Join(filepath.Dir(self), hooks.GatewayProgram), nil
}

// onID is the action of a command whose first argument is a container's id; up
// to most arguments may be given, any number if most is below 0.
func onID(most int, act func(c *cli.Context, r *runtime.Runtime, id string) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := wants(c, 1, most); err != nil {
			return err
		}
		r, err := engine(c)
		if err != nil {
			return err
		}
		return act(c, r, c.Args().First())
	}
}

// onContainer is onID for a container that must exist.
func onContainer(most int, act func(c *cli.Context, ctr *libcontainer.Container) error) cli.ActionFunc {
	return onID(most, func(c *cli.Context, r *runtime.Runtime, id string) error {
		ctr, err := r.Load(id)
		if err != nil {
			return err
		}
		return act(c, ctr)
	})
}

// wants checks the number of arguments; most below 0 means any number.
func wants(c *cli.Context, least, most int) error {
	switch n := c.NArg(); {
	case n < least:
		return usageError{fmt.Errorf("%q requires a minimum of %d argument(s)", c.Command.Name, least)}
	case most >= 0 && n > most:
		return usageError{fmt.Errorf("%q requires a maximum of %d argument(s), got %s", c.Command.Name, most, strings.Join(c.Args().Slice(), " "))}
	}
	return nil
}
