package landlock

import "testing"

// Row i of the table is ABI i: what a kernel can restrict only grows, and every
// right has a name.
func TestABITable(t *testing.T) {
	for _, test := range []struct {
		abi        int
		kernel     string
		restricts  Access
		restricts2 Access // and these it does not yet
	}{
		{0, "", 0, Execute},
		{1, "5.13", MakeSym, Refer},
		{2, "5.19", Refer, Truncate},
		{3, "6.2", Truncate, IoctlDev},
		{4, "6.7", Truncate, IoctlDev},
		{5, "6.10", IoctlDev, ResolveUnix},
		{7, "6.15", IoctlDev, ResolveUnix},
		{9, "7.1", ResolveUnix, 1 << 17},
		{99, "", ResolveUnix, 1 << 17},
	} {
		handled := Handled(test.abi)
		if handled&test.restricts != test.restricts || handled&test.restricts2 != 0 {
			t.Errorf("ABI %d handles %v; want %v in it and %v not", test.abi, handled, test.restricts, test.restricts2)
		}
		if got := Kernel(test.abi); got != test.kernel {
			t.Errorf("ABI %d came with kernel %q, want %q", test.abi, got, test.kernel)
		}
		if Handled(test.abi)&^Handled(test.abi+1) != 0 {
			t.Errorf("ABI %d handles less than ABI %d", test.abi+1, test.abi)
		}
	}
}

// What each class of paths may do, and what none may.
func TestClasses(t *testing.T) {
	for _, test := range []struct {
		class Access
		is    string
	}{
		{ReadOnly, "{execute,read_file,read_dir}"},
		{ReadWrite, "{execute,write_file,read_file,read_dir,remove_dir,remove_file,make_dir,make_reg,make_sock,make_fifo,make_sym,refer,truncate,resolve_unix}"},
		{Device, "{write_file,read_file,truncate,ioctl_dev}"},
		{Terminals, "{write_file,read_file,read_dir,truncate,ioctl_dev}"},
		{Access(1<<17 - 1).OfFile(), "{execute,write_file,read_file,truncate,ioctl_dev}"},
		{ReadWrite.OfFile(), "{execute,write_file,read_file,truncate}"},
		{0, "{}"},
		{1 << 40, "{1<<40}"},
	} {
		if got := test.class.Rights(); got != test.is {
			t.Errorf("got  %s\nwant %s", got, test.is)
		}
	}
}

// A class is printed by its name, any other set by its rights.
func TestString(t *testing.T) {
	for a, want := range map[Access]string{ReadOnly: "read_only", ReadWrite: "read_write", Device: "device", Terminals: "terminals", ReadFile | Execute: "{execute,read_file}",
		ReadOnly &^ Execute: "read_only without execute", ReadWrite &^ (Execute | ResolveUnix): "read_write without execute,resolve_unix"} {
		if got := a.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// A program can neither silence nor forge the records of its own sandbox.
func TestRestrictFlags(t *testing.T) {
	for abi, want := range map[int]uint32{3: 0, 6: 0, 7: 6, 11: 6} {
		if got := RestrictFlags(abi); got != want {
			t.Errorf("ABI %d: flags %#x, want %#x", abi, got, want)
		}
	}
}

// Each kernel's rights, bit by bit: the same table as go-landlock's
// (abi_versions.go), so that a right is neither forgotten nor asked of a kernel
// that would refuse the ruleset. ABI 8 and 10 bring no right of files.
func TestRightsByABI(t *testing.T) {
	for abi, bits := range []int{0, 13, 14, 15, 15, 16, 16, 16, 16, 17, 17, 17} {
		if got, want := Handled(abi), Access(1)<<bits-1; got != want {
			t.Errorf("ABI %d handles %s, want %s", abi, got.Rights(), want.Rights())
		}
	}
	for _, test := range []struct {
		abi  int
		tree Access // what a writable directory is granted then
		not  Access
	}{
		{1, MakeReg | WriteFile, Refer | Truncate | IoctlDev | ResolveUnix},
		{3, Refer | Truncate, IoctlDev | ResolveUnix},
		{8, Refer | Truncate, IoctlDev | ResolveUnix},
		{9, ResolveUnix, IoctlDev | MakeChar | MakeBlock},
		{10, ResolveUnix, IoctlDev | MakeChar | MakeBlock},
	} {
		got := ReadWrite & Handled(test.abi)
		if got&test.tree != test.tree || got&test.not != 0 {
			t.Errorf("ABI %d: a writable directory may %s, want %s in it and %s not", test.abi, got.Rights(), test.tree.Rights(), test.not.Rights())
		}
	}
}
