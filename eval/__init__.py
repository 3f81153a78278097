raise ModuleNotFoundError("run these as scripts: python eval/NAME.py; what is worth importing is in unified/")
