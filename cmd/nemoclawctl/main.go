// Command nemoclawctl is the operator's console: it shows what sandboxes do and
// decides what they may do. It reaches them through their state directories
// and sockets, and confines nothing itself.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"nemoclaw/egress/control"
	"nemoclaw/specs/settings"
)

// Set by the Makefile.
var (
	version = "0.1.0"
	commit  = ""
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // the command failed; audit verify found faults; policy test, something refused that was allowed
	exitUsage  = 2 // the command line is wrong
	exitWeaker = 3 // status found a layer that is weaker than asked
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is the program without its process.
func run(args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.Run(reorder(app, args))
	if err == nil {
		return exitOK
	}
	printError(stderr, err)
	switch {
	case errors.As(err, new(usageError)):
		return exitUsage
	case errors.As(err, new(weakError)):
		return exitWeaker
	}
	return exitFailed
}

// usageError marks a command line that is wrong.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }

// hinted is an error with advice, which stands on a line of its own.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

func printError(w io.Writer, err error) {
	text := printable(err.Error())
	fmt.Fprintf(w, "nemoclawctl: %s\n", text)
	var h hinted
	if errors.As(err, &h) && h.hint != "" {
		fmt.Fprintf(w, "hint: %s\n", printable(h.hint))
	}
}

var jsonFlag = &cli.BoolFlag{Name: "json", Usage: "print JSON for programs instead of text for people"}

func newApp(stdout, stderr io.Writer) *cli.App {
	cli.VersionPrinter = printVersion
	cli.OsExiter = func(int) {} // run decides
	app := &cli.App{
		Name:                 "nemoclawctl",
		Usage:                "see what sandboxes do, and decide what they may do",
		Version:              version,
		Writer:               stdout,
		ErrWriter:            stderr,
		EnableBashCompletion: true,
		HideHelpCommand:      true,
		ExitErrHandler:       func(*cli.Context, error) {},
		OnUsageError:         usage,
		Action:               noCommand,
		Commands: []*cli.Command{
			listCommand, statusCommand, logCommand, eventsCommand, metricsCommand,
			pendingCommand, approveCommand, denyCommand, grantsCommand, revokeCommand,
			policyCommand, reloadCommand, repairCommand, auditCommand, setupCommand, completionCommand,
		},
	}
	prepare(app.Commands)
	return app
}

// noCommand is what happens where a command is missing, or is none.
func noCommand(c *cli.Context) error {
	if c.Args().Present() {
		return hinted{usageError{fmt.Errorf("cannot run %q: there is no such command", c.Args().First())}, c.Command.HelpName + " --help lists the commands"}
	}
	return cli.ShowSubcommandHelp(c)
}

// prepare sets what commands do not inherit from the application.
func prepare(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = usage
		c.HideHelpCommand = true
		prepare(c.Subcommands)
	}
}

func usage(c *cli.Context, err error, _ bool) error {
	return hinted{usageError{fmt.Errorf("cannot understand the command line: %w", err)}, c.Command.HelpName + " --help shows the flags"}
}

func printVersion(c *cli.Context) {
	fmt.Fprintf(c.App.Writer, "nemoclawctl version %s\n", version)
	if commit != "" {
		fmt.Fprintf(c.App.Writer, "commit: %s\n", commit)
	}
}

// reorder puts a command's flags, with their values, before its arguments,
// where cli/v2 looks for them; behind "--" everything is an argument.
func reorder(app *cli.App, args []string) []string {
	if len(args) < 2 || args[len(args)-1] == "--generate-bash-completion" {
		return args
	}
	head, rest := args[:1:1], args[1:]
	commands, command := app.Commands, (*cli.Command)(nil)
	for len(rest) > 0 && (command == nil || len(commands) > 0) {
		if !strings.HasPrefix(rest[0], "-") {
			command = named(commands, rest[0])
			commands = nil
			if command != nil {
				commands = command.Subcommands
			}
		}
		head, rest = append(head, rest[0]), rest[1:]
		if command == nil && !strings.HasPrefix(head[len(head)-1], "-") {
			break // there is no such command
		}
	}
	var flags, words []string
	for i := 0; i < len(rest); i++ {
		a := rest[i]
		if a == "--" {
			words = append(words, rest[i:]...)
			break
		}
		if !strings.HasPrefix(a, "-") || a == "-" {
			words = append(words, a)
			continue
		}
		flags = append(flags, a)
		if hasValue(command, a) && i+1 < len(rest) {
			i++
			flags = append(flags, rest[i])
		}
	}
	return append(append(head, flags...), words...)
}

func named(commands []*cli.Command, name string) *cli.Command {
	for _, c := range commands {
		if c.HasName(name) {
			return c
		}
	}
	return nil
}

// hasValue tells whether the argument behind a flag is the flag's.
func hasValue(c *cli.Command, arg string) bool {
	if c == nil || strings.Contains(arg, "=") {
		return false
	}
	for _, f := range c.Flags {
		if _, alone := f.(*cli.BoolFlag); !alone && slices.Contains(f.Names(), strings.TrimLeft(arg, "-")) {
			return true
		}
	}
	return false
}

// wants checks the number of arguments.
func wants(c *cli.Context, least, most int) error {
	if n := c.NArg(); n < least || n > most {
		return hinted{usageError{fmt.Errorf("cannot run %s with %d arguments", c.Command.Name, n)}, "nemoclawctl " + c.Command.Name + " " + c.Command.ArgsUsage}
	}
	return nil
}

// sandbox is one that the command line names.
type sandbox struct {
	dir string
	*control.Sandbox
	settings *settings.Settings
}

// find returns the sandbox whose id, or the beginning of it, is id.
func find(id string) (*sandbox, error) {
	set, err := settings.Load()
	if err != nil {
		return nil, err
	}
	dir, s, err := control.Find(set.RunDir, id)
	if err != nil {
		return nil, hinted{err, "nemoclawctl list shows the sandboxes of this host"}
	}
	return &sandbox{dir, s, set}, nil
}

// all returns every sandbox, in the order of their ids.
func all() ([]*sandbox, error) {
	set, err := settings.Load()
	if err != nil {
		return nil, err
	}
	found, err := control.Sandboxes(set.RunDir)
	if err != nil {
		return nil, err
	}
	list := make([]*sandbox, 0, len(found))
	for dir, s := range found {
		list = append(list, &sandbox{dir, s, set})
	}
	sortSandboxes(list)
	return list, nil
}

// unread is why there are sandboxes that all does not return, or nil.
func unread() error {
	set, err := settings.Load()
	if err != nil {
		return err
	}
	if err := control.Unread(set.RunDir); err != nil {
		return hinted{err, "another version of nemoclaw may have made it: look at it with that one"}
	}
	return nil
}
