package main

import "strings"

// reorder puts a command's flags before its arguments, where cli v2 wants them:
// runc takes them anywhere, and engines and people write "kill ID --all". What
// follows "--" stays. exec and ps are left alone, since what follows their
// container belongs to another program.
func reorder(args []string) []string {
	at := commandAt(args)
	if at < 0 || args[at] == "exec" || args[at] == "ps" {
		return args
	}
	values := valueFlags(args[at])
	var flags, rest []string
	for i := at + 1; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			rest = append(rest, args[i:]...)
			i = len(args)
		case len(a) > 1 && a[0] == '-':
			flags = append(flags, a)
			if values[strings.TrimLeft(a, "-")] && i+1 < len(args) {
				i++
				flags = append(flags, args[i])
			}
		default:
			rest = append(rest, a)
		}
	}
	return append(append(append([]string{}, args[:at+1]...), flags...), rest...)
}

// globalValues are the global flags that take a value in the next argument.
var globalValues = map[string]bool{"log": true, "log-format": true, "root": true, "policy": true, "rootless": true, "criu": true}

// commandAt returns the index of the command in args, or -1.
func commandAt(args []string) int {
	for i := 1; i < len(args); i++ {
		name := strings.TrimLeft(args[i], "-")
		switch {
		case name == args[i]:
			return i
		case globalValues[name]:
			i++
		}
	}
	return -1
}

// valueFlags returns the flags of a command that take a value in the next
// argument.
func valueFlags(command string) map[string]bool {
	takes := map[string]bool{}
	for _, c := range newApp(new(tell), nil).Commands {
		if c.Name != command {
			continue
		}
		for _, f := range c.Flags {
			if d, ok := f.(interface{ TakesValue() bool }); ok && d.TakesValue() {
				for _, n := range f.Names() {
					takes[n] = true
				}
			}
		}
	}
	return takes
}
